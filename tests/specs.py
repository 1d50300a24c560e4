"""A model for tests that need one, and care for little of it."""

from deployments.settings import EngineSettings, ModelSpec


def tiny(checkpoint: str, revision: str | None = None) -> ModelSpec:
    """A text model with this checkpoint."""
    return ModelSpec(
        name="tiny",
        description="",
        tasks=["generate"],
        task="generate",
        vision=False,
        port=None,
        checkpoint=checkpoint,
        revision=revision,
        untrained=True,
        engine=EngineSettings(max_model_len=16, max_num_seqs=1, max_num_batched_tokens=16),
        env={},
    )
