"""A run of two processes, one of which is killed, goes on as if nothing had been: data, losses and weights."""

from resume import arguments, compared, train_with_a_kill, write_shards

from tests.tiny import tiny_tokenizer


def test_a_run_with_a_killed_process_ends_as_the_unbroken_one(tmp_path):
    write_shards(tmp_path / "shards")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    given = arguments(tmp_path / "shards", tmp_path / "tokenizer", steps=6, saved_every=2)
    train_with_a_kill(tmp_path, given, processes=2, rank=1, fatal=3)
    found = compared(tmp_path, processes=2)
    assert found["steps"] == found["steps with equal records"] == 6
    assert found["micro-batches read"] == found["of equal data"] == 12
    assert found["processes with equal weights"] == 2
    assert found["read again after the kill"] > 0
