# SPDX-License-Identifier: Apache-2.0
"""What a model repository holds, read from its configuration and the headers of its weight files."""

import json
import math
import re
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SITES = "text_encoder|detr_encoder|detr_decoder|mask_decoder|dot_product_scoring"
_ADAPTER_KEY = re.compile(rf"({_SITES})\.(?:.*?\.)?sam3i_\w+\.(\w+)\.")
_STOCK_KINDS = {
    "sam3": "stock SAM3",
    "sam3_video": "stock SAM3 video",
    "sam3_lite_text": "stock SAM3-LiteText",
}
_MEMBER_LEVEL = {
    "s_adapter": "simple",
    "simple": "simple",
    "cascade_s_adapter": "complex",
    "c_adapter": "complex",
    "complex": "complex",
}
_CONFIGS = ("config.json", "adapter_config.json", "processor_config.json")
_MOST_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself


@dataclass
class RepoInfo:
    """What a repository holds."""

    name: str  # folder or Hub name
    kind: str  # "stock SAM3", "SAM3-I" (base and adapters), "SAM3-I adapters" (to be put on `base`), ...
    base: str | None  # the repository that adapters need
    levels: list[str]  # that the weights were made for; the others behave like concept
    tensors: int = 0
    parameters: int = 0
    adapter_parameters: int = 0
    bytes: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)  # parameters by data type
    adapters: dict[str, dict[str, int]] = field(default_factory=dict)  # parameters by site and member
    settings: dict[str, Any] = field(default_factory=dict)  # of configuration and processor, that change results

    @property
    def level_parameters(self) -> dict[str, int]:
        """Adapter parameters by the level that they serve; "all levels" for those that serve every one."""
        sums: Counter = Counter()
        for members in self.adapters.values():
            for member, number in members.items():
                sums[_MEMBER_LEVEL.get(member, "all levels")] += number
        return {name: sums[name] for name in ("simple", "complex", "all levels") if sums[name]}

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.kind}",
            f"  base        {self.base}" if self.base else "",
            f"  levels      {', '.join(self.levels)}",
            f"  parameters  {_count(self.parameters)} in {self.tensors} tensors, {self.bytes / 1e6:.1f} MB ("
            + ", ".join(f"{name} {_count(number)}" for name, number in self.dtypes.items())
            + ")",
            f"  adapters    {_count(self.adapter_parameters)}" if self.adapters else "  adapters    none",
        ]
        for site, members in self.adapters.items():
            parts = ", ".join(f"{member} {_count(number)}" for member, number in members.items())
            lines.append(f"    {site:<19} {parts}")
        lines += [f"  {name:<28} {value}" for name, value in self.settings.items()]
        return "\n".join(line for line in lines if line)


def _count(number: int) -> str:
    if number >= 1_000_000:
        return f"{number / 1e6:.2f} M"
    return f"{number / 1e3:.1f} k" if number >= 1_000 else str(number)


def read_safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """Name, data type and shape of every tensor of a file, without its weights.

    Raises:
        ValueError: when the file is no safetensors file, or shorter than its header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= min(size - 8, _MOST_HEADER_BYTES):
            raise ValueError(f"{path} is not a safetensors file, or it is cut off: fetch or save it again.")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ValueError(f"{path} has a broken header ({error}): fetch or save it again.") from error
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != 8 + length + end:
        raise ValueError(f"{path} should have {8 + length + end} bytes and has {size}: fetch or save it again.")
    return header


def _hub_files(name: str) -> tuple[dict[str, dict], dict[str, dict[str, dict[str, Any]]], int]:
    """Configurations and weight headers of a Hub repository; only headers of the weights are fetched."""
    from huggingface_hub import HfApi, hf_hub_download

    api = HfApi()
    files = api.list_repo_files(name)
    configs: dict[str, dict] = {
        file: json.loads(Path(hf_hub_download(name, file)).read_text(encoding="utf-8"))
        for file in _CONFIGS
        if file in files
    }
    headers, size = {}, 0
    for file in files:
        if file.endswith(".safetensors"):
            tensors = api.parse_safetensors_file_metadata(name, file).tensors
            headers[file] = {key: {"dtype": tensor.dtype, "shape": tensor.shape} for key, tensor in tensors.items()}
            size += sum(tensor.data_offsets[1] - tensor.data_offsets[0] for tensor in tensors.values())
    return configs, headers, size


def _local_files(folder: Path) -> tuple[dict[str, dict], dict[str, dict[str, dict[str, Any]]], int]:
    configs = {
        file: json.loads((folder / file).read_text(encoding="utf-8")) for file in _CONFIGS if (folder / file).is_file()
    }
    weights = sorted(folder.glob("*.safetensors"))
    headers = {path.name: read_safetensors_header(path) for path in weights}
    return configs, headers, sum(path.stat().st_size for path in weights)


def repo_info(model: str | Path) -> RepoInfo:
    """Describe a folder or Hub repository of SAM3-I or SAM3 without loading its weights; print it for a summary.

    Raises:
        FileNotFoundError: when a folder holds no configuration.
        ValueError: for a repository of another family of models, or broken weight files.
    """
    folder = Path(model)
    if folder.is_file():
        raise FileNotFoundError(f"Expected a folder or a Hub name, found the file {folder}.")
    if folder.is_absolute() and not folder.is_dir():
        raise FileNotFoundError(f"Expected a folder or a Hub name, found no folder {folder}.")
    configs, headers, size = _local_files(folder) if folder.is_dir() else _hub_files(str(model))
    config, adapter_config = configs.get("config.json", {}), configs.get("adapter_config.json")
    if not config and adapter_config is None:
        raise FileNotFoundError(f"{model} holds neither config.json nor adapter_config.json.")
    model_type = config.get("model_type")
    if config and model_type not in ("sam3i", *_STOCK_KINDS):
        from ..modeling_sam3i.configuration_sam3i import explain_other_family

        raise ValueError(f"{model}: {explain_other_family(model_type)}")
    tensors = {key: entry for header in headers.values() for key, entry in header.items()}
    adapters: dict[str, Counter] = {}
    dtypes: Counter = Counter()
    for key, entry in tensors.items():
        number = math.prod(entry["shape"])
        dtypes[entry["dtype"]] += number
        if match := _ADAPTER_KEY.search(key):
            adapters.setdefault(match[1], Counter())[match[2]] += number
    found = {_MEMBER_LEVEL.get(member) for members in adapters.values() for member in members}
    adapter_parameters = sum(members.total() for members in adapters.values())
    if adapters:
        only = adapter_parameters * 2 > dtypes.total() and not any("vision_encoder" in key for key in tensors)
        kind = "SAM3-I adapters" if only else "SAM3-I"
    else:
        kind = _STOCK_KINDS.get(str(model_type), "no instruction adapters")
    return RepoInfo(
        name=str(model),
        kind=kind,
        base=(adapter_config or {}).get("base_model_name_or_path") or config.get("base_model_name_or_path"),
        levels=["concept"] + [level for level in ("simple", "complex") if level in found],
        tensors=len(tensors),
        parameters=dtypes.total(),
        adapter_parameters=adapter_parameters,
        bytes=size,
        dtypes=dict(dtypes.most_common()),
        adapters={site: dict(members) for site, members in adapters.items()},
        settings=_settings(config, adapter_config or {}, configs.get("processor_config.json", {})),
    )


def _settings(config: dict, adapter_config: dict, processor_config: dict) -> dict[str, Any]:
    fields = config | adapter_config
    sizes = ("adapter_dim", "adapter_heads") if fields.get("adapter_design") == "cascade" else ("adapter_rank",)
    names = ("adapter_design", *sizes, "max_instruction_length")
    settings = {name: fields[name] for name in names if name in fields}
    detector = config.get("detector_config", config)
    image_size = ((detector.get("vision_config") or {}).get("backbone_config") or {}).get("image_size")
    queries = (detector.get("detr_decoder_config") or {}).get("num_queries")
    settings |= {"image_size": image_size} if image_size else {}
    settings |= {"queries": queries} if queries else {}
    if "auto_levels" in processor_config:
        settings["auto_levels"] = processor_config["auto_levels"]
    return settings
