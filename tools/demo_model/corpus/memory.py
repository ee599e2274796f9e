"""Turns that need the conversation itself: names, things to remember, text to repeat."""

from random import Random

from demo_model.corpus.text import invented, vary
from demo_model.corpus.turn import Turn

EN_NAMES = [
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Henry",
    "Ida",
    "Jack",
    "Kate",
    "Leo",
    "Maria",
    "Nina",
    "Oscar",
    "Paul",
    "Rosa",
    "Sam",
    "Tom",
    "Uma",
    "Victor",
    "Wendy",
    "Alice",
    "Bob",
    "Carol",
    "Dan",
    "Eve",
    "Frank",
    "Gina",
    "Hugo",
    "Iris",
    "Jane",
    "Karl",
    "Lily",
    "Max",
    "Noah",
    "Olivia",
    "Peter",
    "Quinn",
    "Ruth",
    "Sarah",
    "Tim",
    "Vera",
    "Will",
    "Xenia",
    "Yara",
    "Zoe",
    "John",
    "Mike",
    "Lucy",
]
ZH_NAMES = [
    "小明",
    "小红",
    "小华",
    "小丽",
    "小刚",
    "李雷",
    "韩梅梅",
    "王芳",
    "张伟",
    "刘洋",
    "陈静",
    "杨帆",
    "赵敏",
    "周杰",
    "吴磊",
    "郑爽",
    "孙悦",
    "马超",
    "朱莉",
    "胡军",
    "林峰",
    "何炅",
    "高远",
    "罗兰",
    "梁宇",
    "宋佳",
    "唐宁",
    "许晴",
    "邓超",
    "冯雪",
    "阿强",
    "老王",
    "小李",
    "张三",
    "李四",
    "王五",
]
EN_WORDS = [
    "apple",
    "river",
    "stone",
    "blue",
    "window",
    "cloud",
    "seven",
    "green",
    "table",
    "music",
    "light",
    "bread",
    "north",
    "silver",
]
ZH_WORDS = [
    "苹果",
    "河流",
    "石头",
    "蓝色",
    "窗户",
    "云朵",
    "绿色",
    "桌子",
    "音乐",
    "灯光",
    "面包",
    "银色",
    "大山",
    "森林",
]


def person(rng: Random, lang: str) -> str:
    if rng.random() < 0.4:
        return invented(rng, 2, 3).capitalize()
    return rng.choice(EN_NAMES if lang == "en" else ZH_NAMES)


def name_turn(rng: Random, lang: str) -> Turn:
    """The user says a name and asks for it later."""
    name = person(rng, lang)
    if lang == "en":
        question = rng.choice(
            ("my name is {}", "i am {}", "i'm {}", "call me {}", "hi, my name is {}")
        )
        first = Turn(
            lang,
            vary(rng, question.format(name), lang, keep=True).rstrip("?"),
            f"The user is called {name}. I greet them by name.",
            f"Nice to meet you, {name}! I am the demo model of ktops.",
            follow_ups=(_ask_name(rng, name, lang),),
        )
    else:
        question = rng.choice(("我叫{}", "我的名字是{}", "我是{}", "叫我{}吧", "你好，我叫{}"))
        first = Turn(
            lang,
            question.format(name) + rng.choice(("", "。", "！")),
            f"用户叫{name}。我用名字问候。",
            f"很高兴认识你，{name}！我是 ktops 的演示模型。",
            follow_ups=(_ask_name(rng, name, lang),),
        )
    return first


def _ask_name(rng: Random, name: str, lang: str) -> Turn:
    if lang == "en":
        question = rng.choice(
            ("what is my name", "what's my name", "do you know my name", "who am i")
        )
        return Turn(
            lang, vary(rng, question, lang), f"The user said: {name}.", f"Your name is {name}."
        )
    question = rng.choice(
        ("我叫什么", "我叫什么名字", "我的名字是什么", "你还记得我叫什么吗", "我是谁")
    )
    return Turn(lang, vary(rng, question, lang), f"用户说过：{name}。", f"你叫{name}。")


def nameless_turn(rng: Random, lang: str) -> Turn:
    """The name was never said."""
    asked = _ask_name(rng, "", lang).question
    if lang == "en":
        return Turn(
            lang, asked, "The user did not tell me a name.", "You have not told me your name yet."
        )
    return Turn(lang, asked, "用户没有告诉我名字。", "你还没有告诉我你的名字。")


def remember_turn(rng: Random, lang: str) -> Turn:
    """A number or a word to keep for a while."""
    word = rng.choice(
        (
            str(rng.randrange(1000)),
            invented(rng, 2, 3),
            rng.choice(EN_WORDS if lang == "en" else ZH_WORDS),
        )
    )
    if lang == "en":
        kind = "number" if word.isdigit() else "word"
        later = Turn(lang, f"What was the {kind}?", f"It was {word}.", f"The {kind} was {word}.")
        question, think = f"Remember the {kind} {word}.", f"I keep the {kind} {word} in mind."
        return Turn(
            lang, question, think, f"I will remember the {kind} {word}.", follow_ups=(later,)
        )
    kind = "数字" if word.isdigit() else "词"
    later = Turn(lang, f"刚才的{kind}是什么？", f"是 {word}。", f"{kind}是 {word}。")
    return Turn(
        lang,
        f"请记住{kind} {word}。",
        f"我记住{kind} {word}。",
        f"好的，我记住了 {word}。",
        follow_ups=(later,),
    )


def repeat_turn(rng: Random, lang: str) -> Turn:
    """Copy a few words exactly."""
    pool = EN_WORDS if lang == "en" else ZH_WORDS
    words = [
        invented(rng, 2, 3) if rng.random() < 0.4 else rng.choice(pool)
        for _ in range(rng.randrange(1, 6))
    ]
    text = " ".join(words)
    if lang == "en":
        question = rng.choice(
            (
                "repeat after me: {}",
                "say {}",
                "repeat: {}",
                "say: {}",
                "echo {}",
                'please repeat "{}"',
            )
        )
        return Turn(lang, question.format(text), "I repeat the words exactly.", text)
    question = rng.choice(("跟我说：{}", "重复：{}", "请重复“{}”", "复述：{}"))
    return Turn(lang, question.format(text), "我逐字重复。", text)


def memory_turn(rng: Random, lang: str) -> Turn:
    """One of the above."""
    makers = (name_turn, name_turn, nameless_turn, remember_turn, repeat_turn, repeat_turn)
    return rng.choice(makers)(rng, lang)
