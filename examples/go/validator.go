package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"time"
	"unicode/utf8"

	lru "github.com/hashicorp/golang-lru/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	authsvc "example.com/backend/gen/authsvc/v1"
)

const (
	batchSize       = 100
	batchesInFlight = 4
	cacheSize       = 10_000
	maxTokenBytes   = 8192 // a batch of longer ones would exceed the largest message, and fail for all
	deadline        = 2500 * time.Millisecond
	fallbackWait    = 250 * time.Millisecond // for the service, where an earlier answer may stand in
)

var (
	errCallerRefused = errors.New("authsvc refuses this backend: check its API key or certificate, and its permissions")
	errUnavailable   = errors.New("authsvc cannot answer, which says nothing about the token")
)

// invalidTokenError is an answer: the token is not active.
type invalidTokenError struct{ reason authsvc.InactiveReason }

func (e invalidTokenError) Error() string { return "the token is invalid: " + e.reason.String() }

// digest replaces a token in memory.
type digest = [sha256.Size]byte

// question is a call of validate that waits for the service.
type question struct {
	ctx    context.Context
	token  string
	result chan<- result
}

// result is the end of a request that began at a time, by the monotonic clock.
type result struct {
	began  time.Time
	answer *authsvc.ValidateTokenResponse // nil: there is none, or none that may be used again
	err    error
}

// serves reports whether the answer is younger than an age, and its token has not expired.
func (r result) serves(age time.Duration) bool {
	return r.answer != nil && time.Since(r.began) < age && time.Now().Before(r.answer.ExpireTime.AsTime())
}

// validator validates access tokens. It answers from the cache what is at most maxStaleness old, and in an outage what
// is at most staleIfError old.
type validator struct {
	client                     authsvc.AuthServiceClient
	maxStaleness, staleIfError time.Duration
	questions                  chan question
	cache                      *lru.Cache[digest, result]
	cacheWrites                sync.Mutex
}

func newValidator(client authsvc.AuthServiceClient, maxStaleness, staleIfError time.Duration) *validator {
	cache, err := lru.New[digest, result](cacheSize)
	if err != nil {
		panic(err) // the size is wrong
	}
	v := &validator{
		client: client, maxStaleness: maxStaleness, staleIfError: staleIfError, questions: make(chan question), cache: cache,
	}
	for range batchesInFlight {
		go v.send()
	}
	return v
}

// validate returns the answer for an active token. Any other end is an invalidTokenError, errCallerRefused or
// errUnavailable.
func (v *validator) validate(ctx context.Context, token string) (*authsvc.ValidateTokenResponse, error) {
	if !isWellFormed(token) {
		return nil, invalidTokenError{authsvc.InactiveReason_INACTIVE_REASON_MALFORMED}
	}
	key := sha256.Sum256([]byte(token))
	known, _ := v.cache.Get(key)
	if known.serves(v.maxStaleness) {
		return known.answer, nil
	}
	patience := deadline
	if known.serves(v.staleIfError) {
		patience = fallbackWait
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	switch fresh := v.ask(ctx, token); {
	case fresh.answer.GetState() == authsvc.TokenState_TOKEN_STATE_ACTIVE:
		if !fresh.answer.Degraded {
			v.store(key, fresh)
		}
		return fresh.answer, nil
	case fresh.answer.GetState() == authsvc.TokenState_TOKEN_STATE_INACTIVE:
		if v.cache.Contains(key) { // else garbage would evict other entries
			v.store(key, result{began: fresh.began})
		}
		return nil, invalidTokenError{fresh.answer.Reason}
	case isCallerRefused(fresh.err):
		return nil, errCallerRefused
	case known.serves(v.staleIfError):
		stale := proto.CloneOf(known.answer)
		stale.Degraded = true
		return stale, nil
	default:
		return nil, errUnavailable
	}
}

// isWellFormed reports whether a token can be sent. One that cannot would fail its whole batch.
func isWellFormed(token string) bool {
	return token != "" && len(token) <= maxTokenBytes && utf8.ValidString(token)
}

// forget makes every later call ask the service, for instance after RevokeToken.
func (v *validator) forget(token string) {
	v.store(sha256.Sum256([]byte(token)), result{began: time.Now()})
}

// store keeps a result unless the known one began later: answers may arrive in another order.
func (v *validator) store(key digest, latest result) {
	v.cacheWrites.Lock()
	defer v.cacheWrites.Unlock()
	if known, ok := v.cache.Peek(key); !ok || latest.began.After(known.began) {
		v.cache.Add(key, latest)
	}
}

func isCallerRefused(err error) bool {
	code := status.Code(err)
	return code == codes.Unauthenticated || code == codes.PermissionDenied
}

// ask waits until a sender is free and has the answer. Its request begins after the call of ask, so the answer is fresh.
func (v *validator) ask(ctx context.Context, token string) result {
	answered := make(chan result, 1) // one who no longer waits holds no sender up
	select {
	case v.questions <- question{ctx, token, answered}:
	case <-ctx.Done():
		return result{err: ctx.Err()}
	}
	select {
	case end := <-answered:
		return end
	case <-ctx.Done():
		return result{err: ctx.Err()}
	}
}

// send makes one request after the other, each with all questions that wait: one alone goes at once.
func (v *validator) send() {
	for first := range v.questions {
		batch := []question{first}
		for more := true; more && len(batch) < batchSize; {
			select {
			case next := <-v.questions:
				batch = append(batch, next)
			default:
				more = false
			}
		}
		v.answer(batch)
	}
}

func (v *validator) answer(batch []question) {
	// Not the context of a caller: one who gives up harms no other.
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	began := time.Now()
	requests := make([]*authsvc.ValidateTokenRequest, len(batch))
	for i, asked := range batch {
		requests[i] = &authsvc.ValidateTokenRequest{Token: asked.token, StaleIfError: durationpb.New(v.staleIfError)}
	}
	if len(batch) == 1 {
		answer, err := v.client.ValidateToken(ctx, requests[0])
		batch[0].result <- result{began, answer, err}
		return
	}
	response, err := v.client.BatchValidateTokens(ctx, &authsvc.BatchValidateTokensRequest{Requests: requests})
	if err == nil && len(response.Results) != len(batch) {
		err = errUnavailable
	}
	for i, asked := range batch {
		if err != nil {
			asked.result <- result{began: began, err: err}
			continue
		}
		item := response.Results[i]
		itemError := status.Error(codes.Code(item.GetError().GetCode()), item.GetError().GetMessage()) // nil for OK
		asked.result <- result{began, item.GetResponse(), itemError}
	}
}
