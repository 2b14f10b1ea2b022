"""Context distillation: a sentence of feedback goes from the prompt into the weights (Askell et al.
2021, arXiv 2112.00861, section 2.2; Snell et al. 2022, arXiv 2209.15189).

The teacher is the base model with the sentence in its prompt, the policy answers without, as in
sdft.py. Every scope's prompts are asked: it is the teacher who judges where the feedback applies.
No revised answer is looked at, and nothing else keeps the model as it was: a rival of C3PO.
"""

from __future__ import annotations

from minialign.methods.c3po import Scoped
from minialign.methods.knobs import DistilConfig
from minialign.methods.lessons import Part, Work
from minialign.methods.sdft import Question, distil, work_of
from minialign.model.transformer import CausalLM
from minialign.policy.encode import ScopedExamples
from minialign.training.run import Run

ADAPTER = "context-distillation"


def train(model: CausalLM, lessons: Scoped, knobs: DistilConfig, run: Run) -> None:
    """Trains the model's active adapter, a fresh one, in place."""
    revised = [revised for revised, _ in lessons.held_out.in_scope]
    distil(model, questions(lessons.train), revised, knobs, run, ADAPTER)


def questions(data: ScopedExamples) -> list[Question]:
    return [Question(*prompts) for prompts in data.told]


def work(lessons: Scoped, knobs: DistilConfig, tokens: int) -> Work:
    """`tokens` are those that a micro-batch may hold."""
    asked = questions(lessons.train)
    probe = [revised for revised, _ in lessons.train.in_scope]
    shown = [Part("told", asked[0].shown, 0, len(asked[0].shown))]
    said = ("context distillation", "the feedback")
    return work_of(asked, probe, knobs, tokens, said, shown)
