"""A backend that knows who is calling at every request.

    make dev                                               # the service, in another terminal; it prints a token
    pip install authsvc fastapi uvicorn
    uvicorn --app-dir examples fastapi_backend:app
    curl -H "Authorization: Bearer $TOKEN" http://127.0.0.1:8000/notes

AUTHSVC_ADDRESS and AUTHSVC_API_KEY name another service.
"""

import os
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware

from authsvc.client import AsyncClient, Identity
from authsvc.client.asgi import AuthMiddleware
from authsvc.client.fastapi import Authenticated

client = AsyncClient(
    os.environ.get("AUTHSVC_ADDRESS", "127.0.0.1:50051"),
    api_key=os.environ.get("AUTHSVC_API_KEY"),
    max_staleness=timedelta(seconds=5),
    stale_if_error=timedelta(minutes=5),
)
User = Annotated[Identity, Depends(Authenticated(client))]
Admin = Annotated[Identity, Depends(Authenticated(client, role="admin"))]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Close the client when the backend stops."""
    async with client:
        yield


app = FastAPI(title="Notes", lifespan=lifespan)
app.add_middleware(AuthMiddleware, client=client, public=["/healthz", "/docs", "/openapi.json"])
# Added last, so that it is outermost: a preflight request has no token.
app.add_middleware(CORSMiddleware, allow_origins=["http://localhost:3000"], allow_headers=["authorization"])

notes: dict[str, list[str]] = defaultdict(list)


@app.get("/healthz")
async def healthz() -> str:
    """Answer without a token."""
    return "ok"


@app.get("/notes")
async def list_notes(user: User) -> list[str]:
    """Return the caller's notes."""
    return notes[user.user_id]


@app.post("/notes", status_code=201)
async def add_note(text: str, user: User) -> None:
    """Add a note of the caller's."""
    notes[user.user_id].append(text)


@app.get("/stats")
async def stats(_: Admin) -> dict[str, int]:
    """Return what the client saved, to admins."""
    found = client.stats()
    return {"users": len(notes), "hits": found.hits, "misses": found.misses, "coalesced": found.coalesced}
