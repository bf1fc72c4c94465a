# SPDX-License-Identifier: Apache-2.0
"""What a conversion did with every tensor of the authors' checkpoint."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPORT_NAME = "conversion_report.json"


@dataclass(frozen=True)
class Setting:
    """A value of the configuration that the converter chose, and where it comes from."""

    value: Any
    source: str


@dataclass
class ConversionReport:
    """Account of a conversion; written beside the weights as `conversion_report.json`."""

    checkpoint: str  # file name
    layout: str  # how it names and nests its weights
    mapped: dict[str, list[str]] = field(default_factory=dict)  # official name to the native names it became
    dropped: dict[str, str] = field(default_factory=dict)  # official name to the reason it was left out
    missing: dict[str, str] = field(default_factory=dict)  # native name to what was done about it
    settings: dict[str, Setting] = field(default_factory=dict)  # that differ from a stock repository's
    adapter_weights: int = 0  # numbers, not tensors
    zero_adapter_weights: int = 0  # exactly zero; trained weights practically never are
    zero_adapter_tensors: list[str] = field(default_factory=list)  # native names; zero throughout
    processor: str = ""  # where it comes from

    def save(self, folder: Path) -> None:
        """Write the report into `folder`."""
        text = json.dumps(asdict(self), indent=2)
        (folder / REPORT_NAME).write_text(text + "\n", encoding="utf-8")

    def summary(self) -> str:
        """A few lines for a person: counts, reasons, settings and the state of the adapters."""
        natives = sum(len(names) for names in self.mapped.values())
        lines = [f"{self.checkpoint} ({self.layout})", f"mapped: {len(self.mapped)} tensors to {natives}"]
        for title, reasons in (("dropped", self.dropped), ("missing", self.missing)):
            lines.append(f"{title}: {len(reasons)}")
            lines.extend(f"  {count:5d}  {reason}" for reason, count in Counter(reasons.values()).most_common())
        lines.append("settings:")
        lines.extend(f"  {name} = {setting.value}  ({setting.source})" for name, setting in self.settings.items())
        if self.adapter_weights:
            share = self.zero_adapter_weights / self.adapter_weights
            lines.append(
                f"adapter weights: {self.adapter_weights:,}, exactly zero: {self.zero_adapter_weights:,} "
                f"({share:.1%}), tensors that are zero throughout: {len(self.zero_adapter_tensors)}"
            )
            members = Counter(_member(name) for name in self.zero_adapter_tensors)
            lines.extend(f"  {count:5d}  {member}" for member, count in members.most_common())
        else:
            lines.append("adapter weights: none in the checkpoint")
        lines.append(f"processor: {self.processor}")
        return "\n".join(lines)


def _member(name: str) -> str:
    """Site and member of an adapter tensor without layer numbers: `detr_decoder: c_adapter.up_proj`."""
    site, member = name.split(".sam3i_adapter.")
    return f"{site.split('.')[0]}: {member.rsplit('.', 1)[0]}"
