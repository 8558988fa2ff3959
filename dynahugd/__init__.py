"""dynahugd: watches every model load on a host and alerts when one behaves unlike benign loads."""

__version__ = "0.1.0"
