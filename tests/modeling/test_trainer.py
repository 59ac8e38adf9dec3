"""transformers' Trainer trains the network as it is, with a collator that masks."""

import torch
from transformers import Trainer, TrainingArguments

from hf_unified_diffusion.modeling.token_loss import IGNORED_LABEL
from tests.modeling.tiny import MASK, open_model, random_ids


class MaskingCollator:
    """Hides each token with probability t."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, rows):
        ids = torch.stack([row["input_ids"] for row in rows])
        time = torch.rand(len(rows), generator=self.generator).clamp_min(0.1)
        hidden = torch.rand(ids.shape, generator=self.generator) < time[:, None]
        return {
            "input_ids": ids.masked_fill(hidden, MASK),
            "timestep": time,
            "labels": ids.masked_fill(~hidden, IGNORED_LABEL),
        }


def test_three_steps(tmp_path):
    model = open_model()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    rows = [{"input_ids": row} for row in random_ids(12, 8)]
    arguments = TrainingArguments(
        tmp_path,
        max_steps=3,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=2,
        activation_checkpointing=True,
        logging_steps=1,
        save_steps=3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model, arguments, data_collator=MaskingCollator(), train_dataset=rows, eval_dataset=rows[:6])
    trained = trainer.train()
    assert trained.global_step == 3
    moved = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert {"token_embedding.weight", "shared_transformer.layers.0.self_attn.q_proj.weight"} <= set(moved)
    # the logged loss is the loss of a batch, neither summed over accumulation nor rescaled
    expected = MaskingCollator()(rows)
    with torch.no_grad():
        loss = model.eval()(**expected).loss.item()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 3
    assert all(loss / 3 < value < loss * 3 for value in logged)
    output = trainer.predict(rows[:6])
    assert output.predictions.shape == (6, 8, 48)
    assert 0 < output.metrics["test_loss"] < 100
    assert (tmp_path / "checkpoint-3" / "model.safetensors").exists()
