# SPDX-License-Identifier: Apache-2.0
"""Score SAM3-I against its baselines on instruction data: accuracy, and what an instruction costs.

    python examples/evaluation.py
    python examples/evaluation.py --model org/sam3-i --data refcoco/ --protocol refcoco \\
        --chat-url URL --chat-model NAME

Without a chat model the agent's is an oracle that knows the targets: it bounds from above what any chat model can do.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset

from sam3i import Sam3IForInstructionSegmentation, Sam3IProcessor, load_instruction_dataset
from sam3i.processing.chat import EndpointChatModel
from sam3i.processing.datasets import row_features
from sam3i.processing.shapes import shapes_rows
from sam3i.trainer.baselines import AgentSegmenter, OracleAgent, PhraseDetector, Sam3ISegmenter, StockSam3Segmenter
from sam3i.trainer.evaluation import LOWEST_SCORE, evaluate_segmenter, format_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parent / "shapes_tiny"))
    parser.add_argument("--data", help="rows to score on; held-out scenes of the shapes world if not given")
    parser.add_argument("--protocol", default="default")
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--chat-url")
    parser.add_argument("--chat-model")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    model = Sam3IForInstructionSegmentation.from_pretrained(options.model, dtype=torch.float32).to(options.device)
    processor = Sam3IProcessor.from_pretrained(options.model)
    if options.data:
        rows = load_instruction_dataset(options.data)
    else:
        made = [row for row in shapes_rows("test", options.scenes) if row["simple"]]
        rows = Dataset.from_list(made, features=row_features())

    # At the concept level SAM3-I computes exactly what stock SAM3 does, so the baselines run on the same weights.
    # What scores above .05 is kept, so that the best threshold of each level can be told as well.
    stock = PhraseDetector(model, processor, threshold=LOWEST_SCORE)
    detector = PhraseDetector(model, processor, threshold=options.threshold)
    if options.chat_url:
        agent = AgentSegmenter(detector, EndpointChatModel(options.chat_url, options.chat_model))
    else:
        agent = OracleAgent.from_rows(detector, rows)
    systems = [
        Sam3ISegmenter(model, processor, threshold=LOWEST_SCORE),
        StockSam3Segmenter(stock),
        StockSam3Segmenter(stock, text_source="concept"),
        agent,
    ]
    settings = {"threshold": options.threshold, "progress": False}
    results = [evaluate_segmenter(system, rows, options.protocol, **settings) for system in systems]
    print(format_results(results))


if __name__ == "__main__":
    main()
