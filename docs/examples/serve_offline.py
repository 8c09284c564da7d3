"""vLLM's offline engine on fxhlo: the plugin is found by itself. `make model` prepares the model."""

from pathlib import Path

from vllm import LLM, SamplingParams

MODEL = Path(__file__).parents[2] / "build" / "models" / "SmolLM2-135M-Instruct"

if __name__ == "__main__":
    llm = LLM(model=str(MODEL), max_model_len=512, max_num_seqs=4, max_num_batched_tokens=512)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    (answer,) = llm.chat(messages, SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)
    print(answer.outputs[0].text)
    assert "Paris" in answer.outputs[0].text
