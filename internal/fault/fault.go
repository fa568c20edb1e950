// Package fault carries the kind of an error from where it happens to where it is decided on.
//
// Every error that crosses a package border says what was tried, where, on which evidence, and what
// a person can do next; its Kind alone decides whether a retry makes sense.
package fault

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Kind classifies an error. Only the Kind decides on a retry, an HTTP status or an exit code.
type Kind uint8

const (
	Internal     Kind = iota // a bug or an unclassified failure of ours
	Invalid                  // the request itself is wrong; repeating it cannot help
	NotFound                 // the thing named does not exist
	Conflict                 // somebody else changed the thing first, or it is held
	Stale                    // the change carries an epoch older than the device or store has seen
	Unauthorized             // credentials refused; never retried, because that locks accounts
	Unsupported              // the device cannot do this
	Busy                     // the device asks to come back later
	Unreachable              // no answer at all: says nothing about the state of the thing
	Timeout                  // an answer did not come in time: the effect is unknown
	Unverified               // the device accepted, but reading back shows another state
	Unsafe                   // refused by a safety rule
)

var names = [...]string{"internal", "invalid", "not-found", "conflict", "stale", "unauthorized", "unsupported",
	"busy", "unreachable", "timeout", "unverified", "unsafe"}

func (k Kind) String() string {
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// ParseKind is the inverse of String; an unknown name is Internal.
func ParseKind(s string) Kind {
	for i, n := range names {
		if n == s {
			return Kind(i)
		}
	}
	return Internal
}

// Retryable reports whether the same call may succeed later without anybody changing anything.
func (k Kind) Retryable() bool {
	switch k {
	case Busy, Unreachable, Timeout, Unverified, Internal:
		return true
	case Invalid, NotFound, Conflict, Stale, Unauthorized, Unsupported, Unsafe:
		return false
	}
	return false
}

// Error is an error with its kind and the four things a reader needs.
type Error struct {
	Kind     Kind
	What     string // what was tried: "read power state"
	Where    string // on which thing: "machine a07, BMC https://127.0.0.1:8007"
	Evidence string // what was seen: "HTTP 503 three times in 4 s"
	Next     string // what to do: "check the BMC's network, then rerack machine probe a07"
	Err      error  // the cause, if any
}

// Error renders one line: where: what: evidence: cause (next).
func (e *Error) Error() string {
	var parts []string
	for _, s := range []string{e.Where, e.What, e.Evidence} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	}
	out := strings.Join(parts, ": ")
	if out == "" {
		out = e.Kind.String()
	}
	if e.Next != "" {
		out += " (next: " + e.Next + ")"
	}
	return out
}

func (e *Error) Unwrap() error { return e.Err }

// New returns an error of kind k that says what went wrong.
func New(k Kind, what string) *Error { return &Error{Kind: k, What: what} }

// Newf is New with formatting; a %w verb keeps the cause reachable by errors.Is and As.
func Newf(k Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	if errors.Unwrap(err) != nil {
		return &Error{Kind: k, Err: err}
	}
	return &Error{Kind: k, What: err.Error()}
}

// Wrap puts what and where around err and keeps its kind; a nil err stays nil.
func Wrap(err error, what, where string) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: KindOf(err), What: what, Where: where, Err: err}
}

// KindOf finds the kind of err: the outermost *Error's, else Timeout for a passed deadline, else Internal.
func KindOf(err error) Kind {
	var fe *Error
	switch {
	case errors.As(err, &fe):
		return fe.Kind
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout
	}
	return Internal
}

// Is reports whether err is of kind k; a nil error is of no kind.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }
