package embedded_test

import (
	"path/filepath"
	"testing"

	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/embedded"
	"rerack.dev/rerack/orchestrator/store/storetest"
)

func open(t testing.TB, c embedded.Config) *embedded.Store {
	t.Helper()
	if c.Path == "" {
		c.Path = filepath.Join(t.TempDir(), "store")
	}
	s, err := embedded.Open(c)
	if err != nil {
		t.Fatalf("Open = %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, embedded.Config{}) })
}

// TestConformanceWithShortHistory has watchers fall behind all the time.
func TestConformanceWithShortHistory(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, embedded.Config{History: 1}) })
}
