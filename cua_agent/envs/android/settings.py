"""What phones over adb can be told. Does not need adbutils."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cua_agent.options import STRICT

Serial = Annotated[str, Field(pattern=r"^\S+$")]
Package = Annotated[str, Field(pattern=r"^[A-Za-z]\w*(\.\w+)+$")]
_EMULATOR = "emulator-"


@dataclass(frozen=True, config=STRICT)
class AndroidSettings:
    """Where the phones are, and how an episode starts on one."""

    host: str = Field(default="127.0.0.1", min_length=1, description="host of the adb server")
    port: int = Field(default=5037, ge=1, le=65535, description="port of the adb server")
    serials: tuple[Serial, ...] = Field(default=(), description="the phones to use; empty: all that are ready")
    snapshot: str | None = Field(
        default=None, pattern=r"^\w[\w.-]*$", description="emulators: the snapshot that every episode starts from"
    )
    clear: tuple[Package, ...] = Field(default=(), description="apps that lose their data before every episode")
    adb_keyboard: bool = Field(
        default=False, description="type through ADBKeyBoard, which has to be installed, what is not ASCII"
    )
    screenshot_delay_s: float = Field(default=0.5, ge=0, le=30, description="from an action to the screenshot after it")
    call_timeout_s: float = Field(default=30.0, gt=0, description="longest silence of a phone during a call")
    wait_s: float = Field(default=600.0, ge=0, description="longest wait of an episode for a phone that is free")

    @model_validator(mode="after")
    def _consistent(self) -> AndroidSettings:
        others = [serial for serial in self.serials if not serial.startswith(_EMULATOR)]
        if self.snapshot is not None and others:
            raise ValueError(f"snapshot={self.snapshot} with serials={others[0]}; allowed: {_EMULATOR}<port>")
        return self
