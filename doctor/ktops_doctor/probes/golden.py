"""Child: does the engine say, token by token, what was recorded of the embedded model?

Argument: the recorded answers. Prints how many tokens agree, and where the first differs.
"""

import json
import sys
from pathlib import Path


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def compare(recorded: Path) -> None:
    from ktops_engine import LLM, EngineConfig, SamplingParams
    from ktops_engine.demo import demo_path

    llm = LLM.load(EngineConfig(demo_path(), demo_path()))
    equal = 0
    try:
        for answer in json.loads(recorded.read_text(encoding="utf-8"))["answers"]:
            wanted = answer["output"]
            params = SamplingParams(temperature=0, max_tokens=len(wanted), ignore_eos=True)
            outputs = llm.generate(answer["token_ids"], params)
            for place, (output, token_id) in enumerate(zip(outputs, wanted, strict=True)):
                if output.token_id != token_id:
                    say(differs=answer["prompt"], place=place + 1)
                    return
                equal += 1
    finally:
        llm.shutdown()
    say(equal=equal)


try:
    compare(Path(sys.argv[1]))
except BaseException as error:  # noqa: BLE001 - whatever breaks is the answer
    explained = isinstance(getattr(error, "code", None), str)
    words = " ".join(str(error).split())
    say(error=words if explained else f"{type(error).__name__}: {words}")
