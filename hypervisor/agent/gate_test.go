package agent

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// A request that comes in just as the server ends is not begun, and one that was begun is waited for.
func TestGate(t *testing.T) {
	inside, leave, left := make(chan struct{}), make(chan struct{}), false
	g := &gate{next: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(inside)
		<-leave
		left = true
	})}
	ask := func() (aborted bool) {
		defer func() { aborted = recover() == http.ErrAbortHandler }()
		g.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
		return false
	}
	go ask()
	<-inside
	go close(leave)
	g.close()
	if !left {
		t.Error("closed with a call inside")
	}
	if !ask() {
		t.Error("a call after the end")
	}
}
