"""Features: what a load did, as counts by class. Counts, never rules: the baseline decides."""

from dynahugd.features.classes import Classifier
from dynahugd.features.rows import (
    CONTEXT,
    Row,
    RowBuilder,
    is_context,
    is_mild,
    is_ordinary,
    is_usual,
)

__all__ = [
    "CONTEXT",
    "Classifier",
    "Row",
    "RowBuilder",
    "is_context",
    "is_mild",
    "is_ordinary",
    "is_usual",
]
