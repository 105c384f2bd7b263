"""The same service as one writes it with FastAPI: pydantic in and out, a dependency for the key.

Same generation, same retriever, same index and effort, counted by prometheus_client: what differs
is everything around the search.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Response
from prometheus_client import Counter, Histogram
from pydantic import BaseModel, ConfigDict, Field

from twotower.serving.retriever import Retriever

REQUESTS = Counter("peer_requests_total", "Requests answered.", ["route", "code"])
SECONDS = Histogram("peer_request_seconds", "Time of a request.", ["route"])
STAGES = Histogram("peer_stage_seconds", "Time of a stage.", ["stage"])


class Query(BaseModel):
    """Which user, and how many items."""

    model_config = ConfigDict(extra="forbid")

    user_id: int | str
    k: int = Field(20, ge=1, le=1000)
    features: dict[str, Any] = Field(default_factory=dict, max_length=256)
    recent: list[int | str] | None = Field(None, max_length=10_000)
    exclude: list[int | str] = Field(default_factory=list, max_length=10_000)
    include_seen: bool = False


class Item(BaseModel):
    """One item of an answer."""

    item_id: int | str
    score: float
    rank: int


class Answer(BaseModel):
    """What a user gets."""

    generation: str
    request_id: str
    degraded: list[str] | None
    candidates: list[Item]


def make_app(retriever: Retriever, key_digest: str) -> FastAPI:
    """Return the application."""
    app = FastAPI()

    def check_key(x_api_key: Annotated[str, Header()]) -> None:
        digest = hashlib.sha256(x_api_key.encode()).hexdigest()
        if not hmac.compare_digest(digest, key_digest):
            raise HTTPException(401)

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/retrieve", dependencies=[Depends(check_key)])
    async def retrieve(query: Query, response: Response) -> Answer:
        began = time.perf_counter()
        found = retriever.find(
            query.user_id,
            query.k,
            features=query.features,
            recent=query.recent,
            exclude=query.exclude,
            include_seen=query.include_seen,
        )
        STAGES.labels("tower").observe(found.tower_s)
        STAGES.labels("ann").observe(found.ann_s)
        item_ids = retriever.decode_items(found.positions)
        scored = zip(item_ids, found.scores.tolist(), strict=True)
        items = [
            Item(item_id=item_id, score=score, rank=rank)
            for rank, (item_id, score) in enumerate(scored, start=1)
        ]
        response.headers["X-Generation"] = retriever.generation
        REQUESTS.labels("/v1/retrieve", "200").inc()
        SECONDS.labels("/v1/retrieve").observe(time.perf_counter() - began)
        return Answer(
            generation=retriever.generation,
            request_id=secrets.token_hex(8),
            degraded=found.degraded or None,
            candidates=items,
        )

    return app


def main() -> None:
    """Serve the live generation of a data folder to the holder of a key, on a free port."""
    data_path, key_digest = Path(sys.argv[1]), sys.argv[2]
    app = make_app(Retriever.open(data_path), key_digest)
    listener = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}"}) + "\n")
    sys.stdout.flush()
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", access_log=False, log_level="warning"
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
