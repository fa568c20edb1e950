package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"unicode"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// Limits of one message, in bytes.
const (
	maxBody   = 1 << 20
	maxAnswer = 16 << 20 // a list of VMs
	maxDetail = 2 << 10  // of a problem, as far as it is believed
)

// problem is the answer to a call that failed.
type problem struct {
	Kind   string `json:"kind"`
	Detail string `json:"detail"`
}

// decodeSpec reads exactly one VM definition that makes sense, and nothing after it.
func decodeSpec(r io.Reader) (driver.Spec, error) {
	var s driver.Spec
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return s, &fault.Error{Kind: fault.Invalid, What: "agent: VM definition", Err: err}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return s, fault.New(fault.Invalid, "agent: something follows the VM definition")
	}
	return s, s.Validate()
}

// decodeAnswer reads one answer into out, which is nil when there is nothing to know but success. An
// answer that is missing, null, cut off, too long or followed by more is an error: least of all does it
// mean that there are no VMs.
func decodeAnswer(code int, body io.Reader, out any) error {
	d := json.NewDecoder(io.LimitReader(body, maxAnswer))
	if code != http.StatusOK {
		var p problem
		if err := d.Decode(&p); err != nil {
			return &fault.Error{Kind: fault.Internal, Evidence: fmt.Sprintf("HTTP %d that is no agent's", code), Err: err}
		}
		return &fault.Error{Kind: fault.ParseKind(p.Kind), Evidence: printable(p.Detail)}
	}
	senseless := func(err error) error {
		return &fault.Error{Kind: fault.Internal, Evidence: "the answer is not the JSON expected", Err: err}
	}
	var raw json.RawMessage
	if err := d.Decode(&raw); err != nil {
		return senseless(err)
	}
	if string(raw) == "null" {
		return senseless(errors.New("null"))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return senseless(errors.New("something follows the answer"))
	}
	if out == nil {
		out = &struct{}{}
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return senseless(err)
	}
	return nil
}

// printable is what an agent says, as far as it may stand in a log.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s[:min(len(s), maxDetail)], ""))
}
