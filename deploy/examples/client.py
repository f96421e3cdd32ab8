#!/usr/bin/env python3
"""Streams one completion from a qserve router or replica over gRPC.

    pip install grpcio grpcio-tools
    deploy/examples/client.py --address 127.0.0.1:50050 --model demo --prompt "A tuple is"

The Python classes of the API are made from proto/ at each start, so there is nothing to generate or to keep in step.
"""

import argparse
import importlib.resources
import pathlib
import sys
import tempfile

import grpc
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"


def load_api(folder):
    """Compiles the API into `folder` and returns its two modules: messages and client."""
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    status = protoc.main(["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={folder}", f"--grpc_python_out={folder}",
                          "qserve/v1/inference.proto"])
    if status != 0:
        raise SystemExit("proto/qserve/v1/inference.proto does not compile")
    sys.path.insert(0, folder)
    from qserve.v1 import inference_pb2, inference_pb2_grpc
    return inference_pb2, inference_pb2_grpc


def make_request(api, arguments):
    spec = api.GenerationSpec(
        model=arguments.model,
        prompt=api.Prompt(text=arguments.prompt),
        sampling=api.SamplingParams(temperature=arguments.temperature),
        stopping=api.StoppingParams(max_tokens=arguments.max_tokens))
    if arguments.seed is not None:
        spec.sampling.seed = arguments.seed  # the same seed gives the same tokens
    if arguments.chat:
        message = api.ChatMessage(role="user", content=arguments.prompt)
        spec.prompt.CopyFrom(api.Prompt(chat=api.Chat(messages=[message])))
    return api.StreamGenerateRequest(spec=spec)


def stream(api, service, arguments):
    with grpc.insecure_channel(arguments.address) as channel:
        client = service.InferenceServiceStub(channel)
        for chunk in client.StreamGenerate(make_request(api, arguments), timeout=arguments.timeout):
            print(chunk.text_delta, end="", flush=True)
            if chunk.HasField("usage"):
                usage = chunk.usage
                reason = api.FinishReason.Name(chunk.finish_reason).removeprefix("FINISH_REASON_")
                print(f"\n[{reason}, {usage.prompt_tokens} prompt tokens, {usage.output_tokens} output tokens]", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", default="127.0.0.1:50050")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--chat", action="store_true", help="send the prompt as the user's turn of a conversation")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        api, service = load_api(folder)
        try:
            stream(api, service, arguments)
        except grpc.RpcError as error:
            raise SystemExit(f"{error.code().name}: {error.details()}") from None


if __name__ == "__main__":
    main()
