"""Prepared checkpoints, from the share straight to the device.

A network is built without memory behind its weights; then each weight is mapped from its file and
copied to the device, or on a CPU used where it is mapped. No more of it is in the host's memory
than the kernel cares to cache.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel

from t2v_server.checkpoint.errors import CheckpointError
from t2v_server.checkpoint.manifest import PIPELINE, Manifest, is_prepared, read_manifest, verify
from t2v_server.engine.networks import CLASSES, empty_network
from t2v_server.engine.pipeline import TextToVideoPipeline
from t2v_server.engine.quantised import Int8Linear, Nf4Linear
from t2v_server.profiles import Profile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A prepared checkpoint whose files are what its manifest says."""

    directory: Path
    manifest: Manifest

    @classmethod
    def open(
        cls, directory: Path, profile: Profile | None = None, *, quick: bool = False
    ) -> Checkpoint:
        """Open the checkpoint in ``directory``, for ``profile`` unless None.

        ``quick`` looks at the sizes of its files alone.

        Raises:
            CheckpointError: it is damaged, not whole, or prepared for another profile.
        """
        manifest = read_manifest(directory)
        if profile is not None and profile.name != manifest.profile:
            raise CheckpointError(
                f"{directory} was prepared for the profile {manifest.profile}, and this server "
                f"runs {profile.name}: set T2V_PROFILE to {manifest.profile} or auto, or T2V_MODEL "
                f"to a checkpoint prepared for {profile.name}"
            )
        verify(directory, manifest.files, quick=quick)
        return cls(directory, manifest)

    def network(self, name: str, device: str) -> nn.Module:
        """Load one of ``transformer``, ``text_encoder`` and ``vae`` to ``device``.

        Raises:
            CheckpointError: its files do not fit the network.
        """
        if device == "cuda":  # which safetensors takes for the first one
            device = f"cuda:{torch.cuda.current_device()}"
        network = empty_network(name, self.directory / name)
        for layer, weights in _layers(self._tensors(name, device)):
            if "packed" in weights:
                shape = network.get_submodule(layer).get_parameter("weight").shape
                packed, absmax = weights.pop("packed"), weights.pop("absmax")
                _set_module(network, layer, Nf4Linear(packed, absmax, shape))
            elif "scale" in weights:
                _set_module(network, layer, Int8Linear(weights.pop("weight"), weights.pop("scale")))
            for end, tensor in weights.items():
                _assign(network, f"{layer}.{end}".removeprefix("."), tensor)
        if isinstance(network, UMT5EncoderModel):
            network.tie_weights()
        left = [key for key, one in network.state_dict().items() if one.is_meta]
        if left:
            raise CheckpointError(f"{self.directory / name} lacks {left[0]}: prepare it again")
        return network.to(device)  # what is computed and not loaded

    def pipeline(self, device: str) -> TextToVideoPipeline:
        """Load everything to ``device``."""
        networks = {name: self.network(name, device) for name in CLASSES}
        return self.assemble(networks)

    def assemble(self, networks: Mapping[str, nn.Module | None]) -> TextToVideoPipeline:
        """A pipeline of these networks, with the checkpoint's tokenizer and scheduler."""
        settings = json.loads((self.directory / PIPELINE).read_text())
        return cast(
            TextToVideoPipeline,
            WanPipeline(
                tokenizer=self.tokenizer(),
                text_encoder=networks["text_encoder"],
                vae=networks["vae"],
                transformer=networks["transformer"],
                scheduler=self.scheduler(),
                expand_timesteps=settings["expand_timesteps"],
            ),
        )

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The prompt's tokenizer."""
        return AutoTokenizer.from_pretrained(self.directory / "tokenizer", local_files_only=True)

    def scheduler(self) -> UniPCMultistepScheduler:
        """The noise schedule."""
        return cast(
            UniPCMultistepScheduler,
            UniPCMultistepScheduler.from_pretrained(self.directory / "scheduler"),
        )

    def _tensors(self, name: str, device: str) -> Iterator[tuple[str, torch.Tensor]]:
        for path in sorted(self.manifest.files):
            if not path.startswith(f"{name}/") or not path.endswith(".safetensors"):
                continue
            try:
                with safe_open(self.directory / path, framework="pt", device=device) as shard:
                    for key in shard.offset_keys():
                        yield key, shard.get_tensor(key)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"{self.directory / path} is damaged ({error}): prepare it again"
                ) from error


def is_local(model: str) -> bool:
    """Whether a model's name is a directory's that no pipeline was saved to as it is published."""
    directory = Path(model)
    local = model.startswith(("/", "./", "../")) or is_prepared(directory)
    return local and not (directory / "model_index.json").is_file()


def load(
    directory: Path, device: str, profile: Profile | None = None
) -> tuple[TextToVideoPipeline, str]:
    """Verify a prepared checkpoint and load all of it to ``device``.

    Returns:
        The pipeline, and a name that no checkpoint of other content has.

    Raises:
        CheckpointError: as ``Checkpoint.open`` and ``Checkpoint.network``.
    """
    checkpoint = Checkpoint.open(directory, profile)
    log.info(
        "%s is whole: prepared for %s from %s at %s",
        directory,
        checkpoint.manifest.profile,
        checkpoint.manifest.origin.name,
        checkpoint.manifest.origin.revision[:12],
    )
    return checkpoint.pipeline(device), checkpoint.manifest.digest


def _layers(
    tensors: Iterator[tuple[str, torch.Tensor]],
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Weights by the layer that they belong to; a layer's lie in one file, and may lie apart."""
    layers = defaultdict[str, dict[str, torch.Tensor]](dict)
    for key, tensor in tensors:
        layer, _, end = key.rpartition(".")
        layers[layer][end] = tensor
    yield from layers.items()


def _assign(network: nn.Module, weight: str, tensor: torch.Tensor) -> None:
    layer, _, name = weight.rpartition(".")
    try:
        module = network.get_submodule(layer)
        expected = getattr(module, name)
    except AttributeError as error:
        raise CheckpointError(f"the network has no {weight}: prepare it again") from error
    if expected is not None and expected.shape != tensor.shape:  # None: of a layer made here
        raise CheckpointError(
            f"{weight} is {tuple(tensor.shape)} and should be {tuple(expected.shape)}: "
            "prepare it again"
        )
    module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))


def _set_module(network: nn.Module, layer: str, module: nn.Module) -> None:
    parent, _, name = layer.rpartition(".")
    setattr(network.get_submodule(parent), name, module)
