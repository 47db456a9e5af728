"""The pipeline of tests that drive the model's own drawing: a box is filled by it, as an outline is."""

from __future__ import annotations

from imprint.pipeline import ImprintPipeline


class DrawingPipeline(ImprintPipeline):
    """As `ImprintPipeline`, silent and with `fit="fill"` by default."""

    _progress_bar_config = {"disable": True}  # diffusers' own

    def __call__(self, *args, fit: str = "fill", **settings):
        return super().__call__(*args, fit=fit, **settings)
