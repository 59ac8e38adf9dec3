"""Laws of deduplication: what was there is dropped, what is new stays, and nothing held out is trained on."""

import random
import textwrap

import pytest

from hf_unified_diffusion.training.data_dedup import HeldOutFunctions, NearDuplicates, deduplicate, digest, minhash
from hf_unified_diffusion.training.data_document import Document

WORDS = [
    a + b for a in ("ba", "co", "di", "fu", "ge", "lo", "mi", "na") for b in ("ra", "ten", "sil", "von", "ket", "pum")
]


def words(seed: int, count: int) -> list[str]:
    return random.Random(seed).choices(WORDS, k=count)


def text(name: str, content: str) -> Document:
    return Document(name, "source", "MIT", "text", content)


def function(name: str, body: str, *, prompt: str = "") -> Document:
    return Document(name, "source", "MIT", "code", body, prompt)


def test_digest_is_blind_to_case_spacing_and_punctuation_only():
    assert digest("Hello,  world!") == digest("hello world")
    assert digest("hello world") != digest("hello word")
    assert digest("+++") != digest("---")


def test_signatures_agree_as_often_as_shingles_overlap():
    shared = words(0, 2000)
    whole, half = " ".join(shared), " ".join(shared[:1000])
    agreement = (minhash(whole) == minhash(half)).mean()
    # Jaccard similarity 0.5 over 64 hashes: five standard deviations
    assert 0.19 < agreement < 0.81
    assert (minhash(whole) == minhash(whole)).all()
    assert (minhash(whole) == minhash(" ".join(words(1, 2000)))).mean() < 0.2


def test_near_duplicates_are_found_and_new_texts_are_not():
    near = NearDuplicates()
    original = words(0, 1000)
    changed = [*original]
    changed[500] = "elsewhere"
    assert near.add(" ".join(original))
    assert not near.add(" ".join(changed))
    assert all(near.add(" ".join(words(seed, 1000))) for seed in range(1, 50))


def test_deduplication_twice_changes_nothing():
    contents = ["\n\n".join(" ".join(words(j, 40)) for j in (i, i // 2)) for i in range(40)]
    documents = [("train", text(str(i), content)) for i, content in enumerate([*contents, *contents[10:20]])]
    once = list(deduplicate(documents))
    assert 0 < len(once) < len(documents)
    assert list(deduplicate(once)) == once


def test_paragraphs_are_kept_once_and_headings_always():
    paragraph = " ".join(words(0, 40))
    documents = [
        ("train", text(str(i), f"A heading\n\n{paragraph}\n\n{' '.join(words(i + 1, 200))}")) for i in range(5)
    ]
    kept = [document.text for _, document in deduplicate(documents)]
    assert sum(paragraph in content for content in kept) == 1
    assert sum("A heading" in content for content in kept) == 5


def test_of_near_duplicates_across_splits_the_held_out_one_stays():
    shared = " ".join(words(0, 500))
    kept = list(deduplicate([("validation", text("v", shared)), ("train", text("t", shared + " more"))]))
    assert [(split, document.document_id) for split, document in kept] == [("validation", "v")]


def test_training_code_that_holds_a_held_out_function_goes():
    body = "    total = 0\n    for item in items:\n        total += item * len(items)\n    return total / 2 + start\n"
    held_out = function("a#f", body, prompt='def f(items):\n    """Explain."""\n')
    copy = "def renamed(items):\n" + body
    powers = "[self.value**power for power in range(self.first, self.last, self.step)]"
    other = f"class A:\n    def g(self):\n        return {powers}\n"
    documents = [("test", held_out), ("train", function("b#0", copy)), ("train", function("c#0", other))]
    assert [document.document_id for _, document in deduplicate(documents)] == ["a#f", "c#0"]


@pytest.mark.parametrize(
    "body",
    [
        "return [value for value in values if value is not None and value > threshold] or list(reversed(values))\n",
        "# a comment\n\nfound = {}\nfor key in keys:\n    found[key] = len(key)\nreturn dict(sorted(found.items()))\n",
    ],
)
def test_held_out_functions_are_found_at_any_indentation_and_docstring(body):
    held_out = HeldOutFunctions()
    held_out.add("def f(keys, values, threshold):\n" + textwrap.indent(body, "    "))
    method = 'class A:\n    def g(self):\n        """Another text."""\n' + textwrap.indent(body, "        ")
    assert held_out.occur_in(method)
    assert not held_out.occur_in(method.replace("key", "lock").replace("value", "worth"))


def test_a_pair_and_its_own_file_both_stay():
    prompt = 'def f(items):\n    """Count the items of a list that are not empty."""\n'
    body = "    found = [item for item in items if item]\n    return len(found) if found else None\n"
    documents = [("train", function("a#0", prompt + body)), ("train", function("a#f", body, prompt=prompt))]
    assert list(deduplicate(documents)) == documents


def test_what_a_dropped_document_held_is_not_lost():
    paragraph = " ".join(words(7, 30))
    original, rest = " ".join(words(0, 400)), " ".join(words(1, 400))
    documents = [
        ("train", text("a", original)),
        ("train", text("b", original + " again\n\n" + paragraph)),
        ("train", text("c", rest + "\n\n" + paragraph)),
    ]
    kept = list(deduplicate(documents))
    assert [document.document_id for _, document in kept] == ["a", "c"]
    assert paragraph in kept[1][1].text
