package qmp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}`

// peer says its lines to a client, one more for each command it is sent; %d becomes the command's number.
func peer(t *testing.T, lines ...string) (near net.Conn, heard chan string) {
	t.Helper()
	near, far := net.Pipe()
	heard = make(chan string, 16)
	t.Cleanup(func() { _ = far.Close() })
	go func() {
		defer close(heard)
		in := bufio.NewScanner(far)
		for i, l := range lines {
			if strings.Contains(l, "%d") {
				l = fmt.Sprintf(l, i)
			}
			if _, err := far.Write([]byte(l + "\n")); err != nil || !in.Scan() {
				return
			}
			heard <- in.Text()
		}
	}()
	return near, heard
}

func TestClient(t *testing.T) {
	event := `{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}` + "\r\n"
	near, heard := peer(t, greeting, event+`{"return": {}, "id": %d}`, `{"return": {"status": "running"}, "id": 9}`+"\n"+`{"return": {"status": "paused"}, "id": %d}`,
		`{"error": {"class": "GenericError", "desc": "no such thing"}, "id": %d}`)
	c, err := New(t.Context(), near)
	if err != nil {
		t.Fatal(err)
	}
	var out struct{ Status string }
	if err := c.Do(t.Context(), "query-status", nil, &out); err != nil || out.Status != "paused" {
		t.Fatalf("%+v, %v", out, err)
	}
	if err := c.Do(t.Context(), "x", map[string]int{"a": 1}, nil); err == nil || !strings.Contains(err.Error(), "no such thing") {
		t.Fatal(err)
	}
	for _, want := range []string{`{"execute":"qmp_capabilities","id":1}`, `{"execute":"query-status","id":2}`, `{"execute":"x","arguments":{"a":1},"id":3}`} {
		if got := <-heard; got != want {
			t.Errorf("sent %s, want %s", got, want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.Do(ctx, "hangs", nil, nil); !fault.Is(err, fault.Timeout) {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Do(t.Context(), "late", nil, nil); !fault.Is(err, fault.Unreachable) {
		t.Fatal(err)
	}
}

func TestWhoIsNoQEMU(t *testing.T) {
	for what, line := range map[string]string{"rubbish": "SSH-2.0", "an answer": `{"return": {}, "id": 1}`, "nothing known": `{"hello": 1}`,
		"two kinds": `{"return": {}, "event": "X"}`, "too much": `{"QMP": "` + strings.Repeat("x", MaxMessage) + `"}`, "twice": greeting + "\n" + greeting} {
		near, _ := peer(t, line)
		if _, err := New(t.Context(), near); err == nil {
			t.Errorf("%s: taken for QEMU", what)
		}
	}
	near, far := net.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := New(ctx, near); !fault.Is(err, fault.Timeout) {
		t.Errorf("silence: %v", err)
	}
	_ = far.Close()
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{greeting, `{"return": {}, "id": 1}`, `{"error": {"class": "C", "desc": "D"}, "id": 2}`, `{"event": "SHUTDOWN", "data": {"guest": true}}`, `{"return": null}`, `[]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := parse(line)
		if err != nil {
			var known *fault.Error
			if !errors.As(err, &known) {
				t.Fatal(err)
			}
			return
		}
		if m.Event == "" && m.Greeting == nil {
			_ = take(m, "x", &struct{ Status string }{})
		}
	})
}
