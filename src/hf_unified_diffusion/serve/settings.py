"""What a server is started with: the same names on the command line, in YAML for a cluster, and in Python."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from ..engine import ArrowEngine
from ..pipelines.checkpoints import EMBEDDED_CHECKPOINT


class ServeSettings(BaseModel):
    """Settings of a server.

    Attributes:
        checkpoint: a folder of a model; the embedded one by default.
        device, dtype: as for `ArrowEngine.from_pretrained`.
        model_name: what clients call the model; the name of the folder by default.
        max_waiting: requests that may wait in a process; one more is answered with 429.
        max_batch: requests of the same settings that may run together.
        timeout_s: what a request may take, waiting included.
        max_body_bytes: of a request; more is answered with 413.
        replicas, num_cpus, num_gpus: processes, and what each reserves; of Ray Serve alone.

    Usage: `ServeSettings(checkpoint="runs/edge/model", max_waiting=64)`
    """

    model_config = ConfigDict(extra="forbid")

    checkpoint: str | None = None
    device: str | None = None
    dtype: str | None = None
    model_name: str | None = None
    max_waiting: int = Field(default=32, ge=0)
    max_batch: int = Field(default=8, ge=1)
    timeout_s: float = Field(default=300, gt=0)
    max_body_bytes: int = Field(default=1_000_000, ge=1)
    replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=1, ge=0)
    num_gpus: float = Field(default=0, ge=0)

    @property
    def folder(self) -> Path:
        """That of the checkpoint."""
        return Path(EMBEDDED_CHECKPOINT if self.checkpoint is None else self.checkpoint)

    @property
    def served_name(self) -> str:
        """What clients call the model."""
        return self.folder.resolve().name if self.model_name is None else self.model_name

    def engine(self) -> ArrowEngine:
        """The engine of the checkpoint.

        Raises:
            ValueError: a folder that holds none.
        """
        if not (self.folder / "config.json").is_file():
            raise ValueError(f"checkpoint must be a folder with a config.json, got {str(self.folder)!r}")
        return ArrowEngine.from_pretrained(self.folder, device=self.device, dtype=self.dtype)
