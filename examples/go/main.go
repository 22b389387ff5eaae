// Command backend is a backend in Go: GET /me answers with the user of a valid access token, and POST /logout ends the
// session of one.
//
//	backend [-authsvc ADDRESS] [-ca FILE] [-listen ADDRESS] [-max-staleness 5s] [-stale-if-error 5m]
//
// The service config is read from authsvc.json, the API key from AUTHSVC_API_KEY.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	authsvc "example.com/backend/gen/authsvc/v1"
)

type identityKey struct{}

func main() {
	address := flag.String("authsvc", "127.0.0.1:50051", "address of authsvc")
	ca := flag.String("ca", "", "certificates of the authority that signed authsvc's; without it plain text, for loopback alone")
	listen := flag.String("listen", "127.0.0.1:8000", "address to listen on")
	maxStaleness := flag.Duration("max-staleness", 0, "how old an answer may be")
	staleIfError := flag.Duration("stale-if-error", 0, "how old an answer may be while authsvc cannot answer")
	flag.Parse()

	connection, err := connect(*address, *ca, os.Getenv("AUTHSVC_API_KEY"))
	if err != nil {
		log.Fatal(err)
	}
	client := authsvc.NewAuthServiceClient(connection)
	validator := newValidator(client, *maxStaleness, *staleIfError)
	http.Handle("GET /me", authenticated(validator, http.HandlerFunc(me)))
	http.Handle("POST /logout", logout(client, validator))
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("http://" + listener.Addr().String())
	log.Fatal(http.Serve(listener, nil))
}

func connect(address, ca, apiKey string) (*grpc.ClientConn, error) {
	serviceConfig, err := os.ReadFile("authsvc.json")
	if err != nil {
		return nil, err
	}
	transport := insecure.NewCredentials()
	if ca != "" {
		if transport, err = credentials.NewClientTLSFromFile(ca, ""); err != nil {
			return nil, err
		}
	}
	withKey := func(ctx context.Context, method string, request, reply any, connection *grpc.ClientConn,
		invoke grpc.UnaryInvoker, options ...grpc.CallOption,
	) error {
		if apiKey != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+apiKey)
		}
		return invoke(ctx, method, request, reply, connection, options...)
	}
	return grpc.NewClient(address, grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(string(serviceConfig)), grpc.WithUnaryInterceptor(withKey))
}

// authenticated lets requests with a valid access token through, and no others.
func authenticated(validator *validator, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := bearer(r.Header)
		if token == "" {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "a bearer token is needed", http.StatusUnauthorized)
			return
		}
		identity, err := validator.validate(r.Context(), token)
		var invalid invalidTokenError
		switch {
		case err == nil:
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), identityKey{}, identity)))
		case errors.As(err, &invalid):
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
			http.Error(w, "the token is invalid", http.StatusUnauthorized)
		case errors.Is(err, errCallerRefused):
			log.Print(err)
			http.Error(w, "internal error", http.StatusInternalServerError)
		default:
			w.Header().Set("Retry-After", "1")
			http.Error(w, "try again later", http.StatusServiceUnavailable)
		}
	})
}

// bearer returns the token of the only Authorization header, empty if there is none.
func bearer(header http.Header) string {
	values := header.Values("Authorization")
	if len(values) != 1 {
		return ""
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

func me(w http.ResponseWriter, r *http.Request) {
	identity := r.Context().Value(identityKey{}).(*authsvc.ValidateTokenResponse)
	answer := map[string]any{"user_id": identity.UserId, "role": identity.Role, "degraded": identity.Degraded}
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		log.Print(err)
	}
}

func logout(client authsvc.AuthServiceClient, validator *validator) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := bearer(r.Header)
		if !isWellFormed(token) {
			http.Error(w, "a bearer token is needed", http.StatusUnauthorized)
			return
		}
		if _, err := client.RevokeToken(r.Context(), &authsvc.RevokeTokenRequest{Token: token}); err != nil {
			log.Print(status.Code(err))
			http.Error(w, "try again later", http.StatusServiceUnavailable)
			return
		}
		validator.forget(token)
		w.WriteHeader(http.StatusNoContent)
	})
}
