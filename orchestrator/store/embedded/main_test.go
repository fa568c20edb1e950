package embedded_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/embedded"
)

// childEnv makes the test binary play a part in another process instead of running tests.
const childEnv = "RERACK_STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	switch role := os.Getenv(childEnv); role {
	case "":
		os.Exit(m.Run())
	case "count":
		play(countForEver(os.Args[1]))
	case "hold":
		play(hold(os.Args[1]))
	case "fill":
		play(fill(os.Args[1]))
	default:
		play(fmt.Errorf("unknown part %q", role))
	}
}

// play ends a child, with what went wrong as its last words.
func play(err error) {
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child starts the test binary in role on the file at path; its words come line by line.
func child(t *testing.T, role, path string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, path)
	cmd.Env = append(os.Environ(), childEnv+"="+role)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.Process != nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return cmd, bufio.NewScanner(out)
}

func hold(path string) error {
	s, err := embedded.Open(embedded.Config{Path: path})
	if err != nil {
		return err
	}
	fmt.Println("open")
	io.Copy(io.Discard, os.Stdin) // until the parent closes it
	return s.Close()
}

const counters = 4

// countForEver raises each counter with its shadow, one writer a counter, and reports every value that
// was acknowledged.
func countForEver(path string) error {
	s, err := embedded.Open(embedded.Config{Path: path})
	if err != nil {
		return err
	}
	failed := make(chan error)
	for c := range counters {
		go func() {
			key, shadow := counterKeys(c)
			start, _, err := s.List(background, key)
			if err != nil {
				failed <- err
				return
			}
			n := 0
			if len(start) > 0 {
				n, _ = strconv.Atoi(string(start[0].Value))
			}
			for {
				n++
				value := []byte(strconv.Itoa(n))
				if err := s.Txn(background, store.Put(key, value), store.Put(shadow, value)); err != nil {
					failed <- err
					return
				}
				fmt.Printf("%d %d\n", c, n) // one write(2) to the pipe: it outlives this process
			}
		}()
	}
	return <-failed
}

func counterKeys(c int) (key, shadow string) {
	return fmt.Sprintf("counter/%d", c), fmt.Sprintf("shadow/%d", c)
}
