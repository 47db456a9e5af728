"""The pipeline of tests that drive the model's own drawing: a box is filled by it, as an outline is."""

from __future__ import annotations

from imprint.pipeline import ImprintPipeline


class DrawingPipeline(ImprintPipeline):
    """As `ImprintPipeline`, with `fit="fill"` by default."""

    def __call__(self, *args, fit: str = "fill", **settings):
        return super().__call__(*args, fit=fit, **settings)
