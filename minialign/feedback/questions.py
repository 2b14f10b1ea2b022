"""Every question that is put to a teacher or a student, in one place to read and to change.

Each function returns one user message. Answers are asked for as plain lists with labels, which
models of any size can write; lists.py reads them. The stages are those of the C3PO paper
(arXiv 2402.10893, section 4.1 and appendix D); the wording is this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence

# Labels that the answers are cut at.
DOMAIN, EFFECT = "DOMAIN", "EFFECT"
THOUGHTS, REVISED_PROMPTS = "THOUGHTS", "REVISED PROMPTS"
RESPONSE = "RESPONSE"


# ---- to the teacher: from the sentence to prompts ----


def describe(feedback: str) -> str:
    return f"""\
A user of an AI assistant gave it this feedback:

{feedback}

Say in two short lines when the feedback applies, and what it asks for.
- {DOMAIN}: the kind of request that it is about, as a noun phrase of at most ten words.
- {EFFECT}: what a response that follows it does, beginning with a verb.

Write these two lines, each beginning with its label, and nothing else."""


def categories(domain: str, count: int) -> str:
    return f"""\
Here is a kind of request that people make to an AI assistant: {domain}

List {count} categories of requests that together cover all of it and a little more: most lie \
inside, some just outside. The categories should differ from each other as much as possible. \
Each one is a phrase of at most eight words.

Write a numbered list with one category a line, without explanations."""


def in_scope_prompts(feedback: str, domain: str, category: str, count: int) -> str:
    return f"""\
A user gave an AI assistant this feedback: {feedback}
It applies to {domain}, and to nothing else.

Write {count} requests that the user might make next, to each of which the feedback applies. \
Stay close to this category: {category}
Make them as different as possible in topic, length and tone, as a real person would type them, \
with invented details where they are needed. Do not mention the feedback.

Write a numbered list with one request a line, without explanations."""


def near_scope_prompts(feedback: str, domain: str, category: str, count: int) -> str:
    return f"""\
A user gave an AI assistant this feedback: {feedback}
It applies to {domain}, and to nothing else.

Write {count} requests that look similar at first sight, sharing words or the topic, but to which \
the feedback does NOT apply, because they are not about {domain}. Stay close to this category: \
{category}
Make them as different as possible in topic, length and tone, as a real person would type them. \
Do not mention the feedback.

Write a numbered list with one request a line, without explanations."""


def revise_prompts(feedback: str, domain: str, prompts: Sequence[str], applies: bool) -> str:
    """`applies`: whether the feedback is to apply to all of them, or to none."""
    wanted = "applies to every" if applies else "applies to NONE"
    listed = "\n".join(f"{number}. {prompt}" for number, prompt in enumerate(prompts, start=1))
    return f"""\
A user gave an AI assistant this feedback: {feedback}
It applies to {domain}, and to nothing else.

This is a list of requests. It should be such that the feedback {wanted} of them, that each can \
be answered as it stands, and that no two ask for nearly the same.

{listed}

First write {THOUGHTS}: and one line about what is wrong with which request, if anything. \
Then write {REVISED_PROMPTS}: and below it the whole list once more, numbered, one request a \
line, with those requests changed or replaced that need it."""


# ---- to the student: responses ----


def revise_response(feedback: str, prompt: str, response: str) -> str:
    return f"""\
This is a request and an AI assistant's response to it.

REQUEST:
{prompt}

{RESPONSE}:
{response}

The user gives this feedback: {feedback}

Write the response once more so that it follows the feedback, and change nothing else. Write the \
new response only, without any remark before or after it."""


def in_context(feedback: str, prompt: str) -> str:
    return f"""\
{prompt}

(Some earlier feedback of mine: {feedback} If it is applicable to this request, apply it. If it is \
not, respond as if I had not said it. Do not mention it.)"""


def chain_of_thought(feedback: str, prompt: str) -> str:
    return f"""\
{prompt}

(Some earlier feedback of mine: {feedback} First write {THOUGHTS}: and one or two sentences about \
whether it applies to this request. Then write {RESPONSE}: and your response to the request, which \
follows the feedback if it applies, and ignores it if it does not.)"""
