"""Adapters for ten new groups of speakers, on the base that experiments/meta_lora_personas.py retrained for that; the base itself stays as it is.

    jaxrec train experiments/meta_lora_personas_adapt.py && jaxrec eval experiments/meta_lora_personas_adapt.py

The base is trained on first use. On the base of another run: `python -m benchmarks.meta_lora_personas` does it with standard retraining. Ours: docs/results.md.
"""

import dataclasses
from pathlib import Path

from jaxrec.data.builders.msc_personas import MscPersonas
from jaxrec.experiment import load
from jaxrec.optimizer import Adam
from jaxrec.stages.runs import Trained
from jaxrec.train.part import Part

retrained = load(Path(__file__).with_name("meta_lora_personas.py"))

experiment = dataclasses.replace(
    retrained,
    method=dataclasses.replace(retrained.method, adapt=True),  # type: ignore[type-var]
    data=dataclasses.replace(retrained.data, source=MscPersonas("adapt")),  # type: ignore[type-var]
    init_from={"base": Part(Trained(retrained), "base")},
    steps=800,
    optimizer=Adam(peak=3e-3, warmup=0.1, decay="linear"),
)
