// Command client is a Go client as the guide describes it: it makes calls with a service config, and counts their ends.
//
//	client ADDRESS SERVICE_CONFIG
//
// It reads jobs from standard input, does them one after the other on one connection, and writes how many calls of each
// ended with each code, as JSON, for instance {"OK":499,"Unavailable":1}. Messages pass as bytes, so no generated code is
// needed.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// job says what to call, with which request, how often, and how many calls to begin in a second.
type job struct {
	Method       string
	Request      []byte
	Calls        int
	CallsASecond int
}

// asBytes is a codec of messages that are encoded already.
type asBytes struct{}

func (asBytes) Marshal(message any) ([]byte, error) { return message.([]byte), nil }

func (asBytes) Unmarshal(data []byte, message any) error {
	*message.(*[]byte) = data
	return nil
}

func (asBytes) Name() string { return "proto" }

func main() {
	address, serviceConfig := os.Args[1], os.Args[2]
	connection, err := grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(serviceConfig))
	if err != nil {
		log.Fatal(err)
	}
	jobs, results := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for jobs.More() {
		var next job
		if err := jobs.Decode(&next); err != nil {
			log.Fatal(err)
		}
		if err := results.Encode(countEnds(connection, next)); err != nil {
			log.Fatal(err)
		}
	}
}

func countEnds(connection *grpc.ClientConn, work job) map[string]int {
	ends := make(chan string, work.Calls)
	var calls sync.WaitGroup
	pace := time.NewTicker(time.Second / time.Duration(work.CallsASecond))
	for range work.Calls {
		<-pace.C
		calls.Go(func() {
			var response []byte
			err := connection.Invoke(context.Background(), work.Method, work.Request, &response, grpc.ForceCodec(asBytes{}))
			ends <- status.Code(err).String()
		})
	}
	calls.Wait()
	close(ends)
	counts := map[string]int{}
	for end := range ends {
		counts[end]++
	}
	return counts
}
