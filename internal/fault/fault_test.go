package fault_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"rerack.dev/rerack/internal/fault"
)

// Every kind there is: its name is on the wire and in the engine's history, so a change breaks both.
var kinds = []struct {
	kind  fault.Kind
	name  string
	retry bool
}{
	{fault.Internal, "internal", true},
	{fault.Invalid, "invalid", false},
	{fault.NotFound, "not-found", false},
	{fault.Conflict, "conflict", false},
	{fault.Stale, "stale", false},
	{fault.Unauthorized, "unauthorized", false},
	{fault.Unsupported, "unsupported", false},
	{fault.Busy, "busy", true},
	{fault.Unreachable, "unreachable", true},
	{fault.Timeout, "timeout", true},
	{fault.Unverified, "unverified", true},
	{fault.Unsafe, "unsafe", false},
}

func TestKinds(t *testing.T) {
	for i, tt := range kinds {
		if int(tt.kind) != i || tt.kind.String() != tt.name || tt.kind.Retryable() != tt.retry || fault.ParseKind(tt.name) != tt.kind {
			t.Errorf("%d: %s, retry %t, parsed %s", i, tt.kind, tt.kind.Retryable(), fault.ParseKind(tt.name))
		}
	}
	after := fault.Kind(len(kinds))
	if after.String() != fmt.Sprintf("kind-%d", len(kinds)) || after.Retryable() {
		t.Errorf("a kind is missing here: %s", after)
	}
	if k := fault.ParseKind("of a later version"); k != fault.Internal {
		t.Errorf("unknown name: %s", k)
	}
}

func TestKindOf(t *testing.T) {
	stale := fault.New(fault.Stale, "old")
	for name, tt := range map[string]struct {
		err  error
		want fault.Kind
	}{
		"nil":                     {nil, fault.Internal},
		"plain":                   {errors.New("x"), fault.Internal},
		"direct":                  {stale, fault.Stale},
		"wrapped by fmt":          {fmt.Errorf("x: %w", stale), fault.Stale},
		"joined":                  {errors.Join(errors.New("x"), stale), fault.Stale},
		"the outermost decides":   {&fault.Error{Kind: fault.Busy, Err: stale}, fault.Busy},
		"Wrap keeps it":           {fault.Wrap(stale, "what", "where"), fault.Stale},
		"Wrap of a deadline":      {fault.Wrap(context.DeadlineExceeded, "what", "where"), fault.Timeout},
		"deadline":                {fmt.Errorf("x: %w", context.DeadlineExceeded), fault.Timeout},
		"cancelled":               {context.Canceled, fault.Internal},
		"a kind over a deadline":  {&fault.Error{Kind: fault.Unreachable, Err: context.DeadlineExceeded}, fault.Unreachable},
		"Newf":                    {fault.Newf(fault.Unsafe, "no %d", 1), fault.Unsafe},
		"Newf around another one": {fault.Newf(fault.Unsafe, "no: %w", stale), fault.Unsafe},
	} {
		if got := fault.KindOf(tt.err); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
	if fault.Is(nil, fault.Internal) || !fault.Is(errors.New("x"), fault.Internal) {
		t.Error("Is: a nil error is of no kind, a plain one internal")
	}
	if err := fault.Wrap(nil, "what", "where"); err != nil {
		t.Errorf("Wrap of nil: %v", err)
	}
	if !errors.Is(fault.Wrap(fs.ErrExist, "what", "where"), fs.ErrExist) || !errors.Is(fault.Newf(fault.Busy, "x: %w", fs.ErrExist), fs.ErrExist) {
		t.Error("the cause is lost")
	}
}

func TestText(t *testing.T) {
	for _, tt := range []struct {
		err  *fault.Error
		want string
	}{
		{&fault.Error{}, "internal"},
		{&fault.Error{Kind: fault.Busy}, "busy"},
		{&fault.Error{What: "read"}, "read"},
		{&fault.Error{Where: "m1", What: "read", Evidence: "HTTP 503", Err: errors.New("EOF"), Next: "look"}, "m1: read: HTTP 503: EOF (next: look)"},
		{&fault.Error{Kind: fault.Stale, Next: "look"}, "stale (next: look)"},
		{fault.Newf(fault.Invalid, "key %q: %w", "a", errors.New("bad")), `key "a": bad`},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}
