package consul_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/consul"
	"rerack.dev/rerack/orchestrator/store/consul/consultest"
	"rerack.dev/rerack/orchestrator/store/storetest"
)

func open(t testing.TB, c consul.Config) *consul.Store {
	t.Helper()
	s, err := consul.Open(context.Background(), c)
	if err != nil {
		t.Fatalf("Open(%v) = %v", c, err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	server := consultest.Start(t)
	var stores atomic.Int64
	storetest.Run(t, func(t *testing.T) store.Store {
		return open(t, consul.Config{Address: server.Address, Prefix: fmt.Sprintf("test/%d", stores.Add(1))})
	})
}
