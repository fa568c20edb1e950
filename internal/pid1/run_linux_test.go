package pid1_test

import (
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pid1"
)

// Who is not the first process must not turn a machine off.
func TestRunIsForTheFirstProcess(t *testing.T) {
	if err := pid1.Run(pid1.Config{Args: []string{"/bin/true"}}); !fault.Is(err, fault.Unsafe) {
		t.Fatal(err)
	}
	if err := pid1.Run(pid1.Config{}); !fault.Is(err, fault.Invalid) {
		t.Fatal(err)
	}
}
