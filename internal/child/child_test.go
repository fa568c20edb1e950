package child_test

import (
	"context"
	"errors"
	"os/exec"
	"syscall"
	"testing"

	"rerack.dev/rerack/internal/child"
)

func TestStart(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, "sleep", "1000")
	ended, err := child.Start(cmd, nil)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		t.Fatalf("it ended at once: %v", err)
	default:
	}
	cancel()
	var exit *exec.ExitError
	if err := <-ended; !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v", err)
	}
}

func TestAFailedStart(t *testing.T) {
	if _, err := child.Start(exec.CommandContext(t.Context(), "/no/such/program"), nil); err == nil {
		t.Error("no such program was started")
	}
	refused := errors.New("refused")
	cmd := exec.CommandContext(t.Context(), "true")
	if _, err := child.Start(cmd, func() error { return refused }); !errors.Is(err, refused) || cmd.Process != nil {
		t.Errorf("started outside: %v", err)
	}
}
