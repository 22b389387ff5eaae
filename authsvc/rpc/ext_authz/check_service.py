"""Handler of envoy.service.auth.v3.Authorization."""

import structlog

from authsvc.errors import CallerRefusedError, InvalidFieldError, MalformedRequestError, RetryLaterError
from authsvc.rpc.authorization import Context
from authsvc.rpc.ext_authz import answers
from authsvc.rpc.ext_authz.credentials import NoToken, authorization_values, read_token
from authsvc.rpc.ext_authz.route_rules import RouteRules, read_rules
from authsvc.rpc.ext_authz_pb2 import AttributeContext, CheckRequest, CheckResponse
from authsvc.rpc.outcomes import record_outcome
from authsvc.tokens.verification import InactiveReason
from authsvc.usecases.validation import Check, Validations

_log = structlog.get_logger(__name__)


class CheckService:
    """Handler of envoy.service.auth.v3.Authorization, which gateways ask for every HTTP request."""

    def __init__(self, validations: Validations) -> None:
        self._validations = validations

    async def Check(self, request: CheckRequest, context: Context) -> CheckResponse:
        """Decide whether an HTTP request may pass."""
        attributes = request.attributes
        rules = _read_rules(attributes)
        token = read_token(authorization_values(attributes.request))
        if isinstance(token, NoToken):
            return _answer_without_token(token, rules, attributes)
        check = Check(token, rules.max_staleness, rules.stale_if_error)
        outcome = (await self._validations.validate(check)).outcome
        record_outcome(outcome)
        if isinstance(outcome, InactiveReason):
            return answers.BAD_TOKEN
        user = outcome.user
        if rules.role and user.role != rules.role:
            return answers.NO_ROLE
        identity = {
            answers.USER_ID: user.user_id,
            answers.EMAIL: user.email,
            answers.ROLE: user.role,
            answers.SESSION_ID: outcome.token.session_id,
        }
        return answers.allow(identity, remove_token=rules.remove_token)

    def answer_error(self, error: BaseException) -> CheckResponse | None:
        """Return the answer to a request whose check failed; None where the gateway itself is refused.

        An error of gRPC would become the status that the gateway is set to: by default 403, without Retry-After.
        """
        match error:
            case CallerRefusedError() | MalformedRequestError():
                return None
            case RetryLaterError():
                return answers.unavailable(error.retry_delay)
            case _:
                return answers.INTERNAL_ERROR


def _read_rules(attributes: AttributeContext) -> RouteRules:
    try:
        return read_rules(attributes.context_extensions)
    except InvalidFieldError as error:
        _log.error("route_misconfigured", field=error.field, problem=error.problem)
        raise


def _answer_without_token(reason: NoToken, rules: RouteRules, attributes: AttributeContext) -> CheckResponse:
    if reason is NoToken.AMBIGUOUS:
        return answers.BAD_TOKEN
    # What is no HTTP request has no headers, which is no reason to let it pass.
    if reason is NoToken.ABSENT and rules.optional and attributes.request.HasField("http"):
        return answers.allow({}, remove_token=rules.remove_token)
    return answers.NO_TOKEN
