"""Handlers of authsvc.v1.UserService: convert a request, call a use case, convert its result."""

from authsvc.errors import InvalidFieldError
from authsvc.rpc import messages
from authsvc.rpc.authorization import Context
from authsvc.usecases.sessions import Sessions
from authsvc.usecases.users import Users
from authsvc.v1 import user_service_pb2 as user_pb2
from authsvc.v1 import user_service_pb2_grpc as user_grpc

UPDATABLE_FIELDS = {"email", "role", "is_active"}
"""Fields of a user that UpdateUser may change."""


class UserService(user_grpc.UserServiceServicer):
    """Handlers of authsvc.v1.UserService."""

    def __init__(self, users: Users, sessions: Sessions) -> None:
        self._users = users
        self._sessions = sessions

    async def CreateUser(self, request: user_pb2.CreateUserRequest, context: Context) -> user_pb2.CreateUserResponse:
        """Create a user with the given credential, or with a temporary password where there is none."""
        fields = {"email": request.email, "role": request.role, "request_id": request.request_id}
        match request.WhichOneof("credential"):
            case "password":
                user = await self._users.create_user(password=request.password, **fields)
            case "password_hash":
                user = await self._users.import_user(password_hash=request.password_hash, **fields)
            case _:
                user, temporary = await self._users.create_user_with_temporary_password(**fields)
                return messages.created_user_to_proto(user, temporary)
        return messages.created_user_to_proto(user)

    async def GetUser(self, request: user_pb2.GetUserRequest, context: Context) -> user_pb2.GetUserResponse:
        """Return a user."""
        key = request.WhichOneof("key")
        if key is None:
            raise InvalidFieldError("key", "must be given")
        user = await (
            self._users.get_user(request.user_id) if key == "user_id" else self._users.get_user_by_email(request.email)
        )
        return user_pb2.GetUserResponse(user=messages.user_to_proto(user))

    async def ListUsers(self, request: user_pb2.ListUsersRequest, context: Context) -> user_pb2.ListUsersResponse:
        """Return a page of users."""
        users, next_page_token = await self._users.list_users(request.page_size, request.page_token)
        return user_pb2.ListUsersResponse(users=map(messages.user_to_proto, users), next_page_token=next_page_token)

    async def UpdateUser(self, request: user_pb2.UpdateUserRequest, context: Context) -> user_pb2.UpdateUserResponse:
        """Change the fields of a user that the update mask names."""
        paths = set(request.update_mask.paths)
        if not paths or not paths <= UPDATABLE_FIELDS:
            raise InvalidFieldError("update_mask", f"must name some of {', '.join(sorted(UPDATABLE_FIELDS))}")
        user = await self._users.update_user(request.user_id, **{path: getattr(request.user, path) for path in paths})
        return user_pb2.UpdateUserResponse(user=messages.user_to_proto(user))

    async def DeleteUser(self, request: user_pb2.DeleteUserRequest, context: Context) -> user_pb2.DeleteUserResponse:
        """Delete a user."""
        await self._users.delete_user(request.user_id)
        return user_pb2.DeleteUserResponse()

    async def ResetPassword(
        self, request: user_pb2.ResetPasswordRequest, context: Context
    ) -> user_pb2.ResetPasswordResponse:
        """Replace a user's password by a temporary one."""
        temporary = await self._users.reset_password(request.user_id)
        return user_pb2.ResetPasswordResponse(
            temporary_password=temporary.text,
            temporary_password_expire_time=messages.timestamp_to_proto(temporary.expire_time),
        )

    async def ListUserSessions(
        self, request: user_pb2.ListUserSessionsRequest, context: Context
    ) -> user_pb2.ListUserSessionsResponse:
        """Return a page of a user's live sessions."""
        sessions, next_page_token = await self._sessions.list_sessions(
            request.user_id, request.page_size, request.page_token
        )
        return user_pb2.ListUserSessionsResponse(
            sessions=map(messages.session_to_proto, sessions), next_page_token=next_page_token
        )

    async def RevokeUserSessions(
        self, request: user_pb2.RevokeUserSessionsRequest, context: Context
    ) -> user_pb2.RevokeUserSessionsResponse:
        """End the named sessions of a user; all of them where none is named."""
        if request.session_ids:
            await self._sessions.revoke_sessions(request.user_id, request.session_ids)
        else:
            await self._users.end_all_sessions(request.user_id)
        return user_pb2.RevokeUserSessionsResponse()
