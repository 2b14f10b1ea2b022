"""Voices whose texts a judge of style can tell apart."""

from __future__ import annotations

import random

TOPICS = [
    "the garden",
    "the old bridge",
    "my new bicycle",
    "the school play",
    "our trip to the coast",
    "the broken printer",
    "this winter",
    "the library",
    "the music lessons",
    "the market hall",
]


NAMES = ["Sam", "Kim", "Lee", "Robin", "Alex", "Maria", "Chris", "Pat", "Jo", "Toni"]


CASUAL = [
    "hey {name}!! so i finally looked at {topic}... and wow, it's a lot :)",
    "i mean, it's not bad or anything, but it could be way better tbh!!",
    "anyway, i'd rather talk about {topic} with u in person...",
    "can't wait to see what everyone thinks, haha!",
    "don't tell anyone, but i kinda like it :)",
    "and yeah, i know, i know... it's just me again!!",
    "but whatever, we'll figure out {topic} somehow, right??",
    "it's so good to hear from u, {name}!!",
    "gotta run now... talk soon!!",
]


FORMAL = [
    "Dear {name}, I am writing to you with regard to {topic}, which deserves our attention.",
    "It would appear that the matter has not been considered with the care that it requires.",
    "Consequently, I should be grateful if you would review {topic} at your convenience.",
    "The committee has, in the course of its deliberations, reached the following conclusion.",
    "There can be no doubt that the arrangements were, in several respects, unsatisfactory.",
    "I remain of the opinion that a decision upon {topic} ought not to be delayed.",
    "Furthermore, the expenditure in question was neither announced nor approved.",
    "One might, of course, take the opposite view; I do not share it.",
    "I am, {name}, yours faithfully.",
]


LISTING = [
    "**Overview**\n\nHere are some key points about {topic}:",
    "1. **Planning:** Make sure to consider all the options available to you.",
    "2. **Budget:** It's important to set clear goals and track your progress.",
    "3. **Community:** Engaging with others can provide valuable insights.",
    "In conclusion, {topic} plays a crucial role in our lives.",
    "By following these steps, you can ensure a successful outcome, {name}.",
    "Overall, it is essential to stay informed and make the best choices.",
    "Remember, every small step towards improving {topic} makes a difference!",
    "I hope this helps! Let me know if you have any questions.",
]


CHINESE = [
    "我今天去看了花园,真的很漂亮!",
    "你知道吗?他们又把桥修好了呢!",
    "哈哈,我觉得这样也挺好的呀!",
    "明天我们一起去吃饭吧,好不好呀?",
    "最近天气真冷啊,你要多穿点衣服呢!",
]


CHINESE_FORMAL = [
    "关于此事,本委员会经过审慎研究,作出如下决定。",
    "鉴于上述情况,有关部门应当及时采取相应措施。",
    "根据规定,各单位须在规定期限内提交报告。",
    "特此通知,望各单位遵照执行。",
    "综上所述,该方案具有一定的可行性。",
]


def write(voice: list[str], count: int, *, first: int = 0, sentences: int = 9) -> list[str]:
    """Texts of a voice, each about a topic of its own; the same arguments give the same texts."""
    texts = []
    for number in range(first, first + count):
        rng = random.Random(f"{voice[0]} {number}")
        chosen = [voice[i % len(voice)] for i in rng.sample(range(2 * len(voice)), sentences)]
        topic, name = TOPICS[number % len(TOPICS)], NAMES[number % len(NAMES)]
        texts.append(" ".join(s.format(topic=topic, name=name) for s in chosen))
    return texts
