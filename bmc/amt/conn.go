package amt

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/icholy/digest"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/bmc/transport"
	"rerack.dev/rerack/internal/fault"
)

const path = "/wsman"

// conn is WS-Management with one AMT, logged in or not. AMT has no session to open: a login is a digest
// challenge (RFC 7616; MD5 in all firmware there is) answered with a count that grows, on a connection
// that is kept.
type conn struct {
	cfg       Config
	http      *http.Client
	url       string
	challenge *digest.Challenge // nil before the login
	count     int               // requests answered with that challenge
	accepted  bool              // the login was
	requests  int               // in the present driver call
}

func newConn(cfg Config) (*conn, error) {
	hc, err := transport.Client(transport.Config{Address: cfg.Address, CA: cfg.CA, Fingerprint: cfg.Fingerprint, DialTimeout: cfg.DialTimeout})
	if err != nil {
		return nil, err
	}
	return &conn{cfg: cfg, http: hc, url: "https://" + cfg.Address + path}, nil
}

// post sends one document and reads the whole answer. Only transport failures are errors here.
func (c *conn) post(ctx context.Context, body []byte) (resp *http.Response, raw []byte, err error) {
	if c.requests++; c.requests > c.cfg.MaxRequests {
		return nil, nil, &fault.Error{Kind: fault.Internal, What: "too many requests in one call", Evidence: fmt.Sprint(c.cfg.MaxRequests),
			Next: "the enumeration may have no end"}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return nil, nil, fault.Newf(fault.Internal, "POST %s: %w", path, err)
	}
	req.Header.Set("Content-Type", "application/soap+xml;charset=UTF-8")
	if c.challenge != nil {
		c.count++
		auth, err := digest.Digest(c.challenge, digest.Options{Method: req.Method, URI: path, GetBody: req.GetBody, Count: c.count,
			Username: c.cfg.User, Password: c.cfg.Password.Reveal()})
		if err != nil {
			return nil, nil, fault.Newf(fault.Unsupported, "answer the digest challenge: %w", err)
		}
		req.Header.Set("Authorization", auth.String())
	}
	resp, err = c.http.Do(req)
	if err != nil {
		return nil, nil, transport.Fault("POST "+path, err)
	}
	defer resp.Body.Close()
	raw, err = io.ReadAll(io.LimitReader(resp.Body, c.cfg.MaxBody+1))
	if err != nil {
		return nil, nil, transport.Fault("POST "+path, err)
	}
	if int64(len(raw)) > c.cfg.MaxBody {
		return nil, nil, &fault.Error{Kind: fault.Internal, What: "POST " + path, Evidence: fmt.Sprintf("answer is longer than %d bytes", c.cfg.MaxBody)}
	}
	return resp, raw, nil
}

// ask fetches a challenge: one request without a login, which no firmware counts as a failed one. What
// does not answer as AMT does is Unsupported.
func (c *conn) ask(ctx context.Context) error {
	c.challenge, c.accepted = nil, false
	resp, raw, err := c.post(ctx, enumerate(classPower).envelope(c.url, messageID()))
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusServiceUnavailable {
		return statusFault(resp.StatusCode, raw)
	}
	ch, err := digest.FindChallenge(resp.Header)
	if resp.StatusCode != http.StatusUnauthorized || err != nil {
		return &fault.Error{Kind: fault.Unsupported, What: "what answers at " + path + " is not AMT", Evidence: fmt.Sprintf("HTTP %d without a digest challenge", resp.StatusCode), Err: err}
	}
	// The realm is Digest: and 32 hex digits, fixed per machine (AMT_GeneralSettings.DigestRealm).
	if !strings.HasPrefix(ch.Realm, "Digest:") && !strings.Contains(resp.Header.Get("Server"), "Active Management Technology") {
		return &fault.Error{Kind: fault.Unsupported, What: "what answers at " + path + " is not AMT", Evidence: fmt.Sprintf("realm %q", clip(ch.Realm))}
	}
	c.challenge, c.count = ch, 0
	return nil
}

// call sends a message and returns the one element of the answer's body, which must be called want.
func (c *conn) call(ctx context.Context, m message, want string) (*node, error) {
	id := messageID()
	resp, raw, err := c.post(ctx, m.envelope(c.url, id))
	if err != nil {
		return nil, err
	}
	what := m.class + " " + m.action[strings.LastIndexByte(m.action, '/')+1:]
	if resp.StatusCode == http.StatusUnauthorized {
		return nil, c.refused(what)
	}
	c.accepted = true
	a, err := parseAnswer(raw)
	switch {
	case resp.StatusCode >= 300 && (err == nil || a.body == nil):
		// Not SOAP: AMT answers what it cannot parse, and what it has no room for, in HTML.
		return nil, fault.Wrap(statusFault(resp.StatusCode, raw), what, "")
	case err != nil:
		return nil, fault.Wrap(err, what, "")
	case a.relatesTo != "" && a.relatesTo != id:
		return nil, &fault.Error{Kind: fault.Internal, What: what, Evidence: "the answer belongs to another request"}
	case a.body.name != want:
		return nil, &fault.Error{Kind: fault.Internal, What: what, Evidence: fmt.Sprintf("answer holds %s, not %s", clip(a.body.name), want)}
	}
	return a.body, nil
}

// refused tells a wrong login from a challenge that has run out: AMT says stale="false" to both, and
// after a login that was accepted it is the challenge ("Clients must be able to process intermittent
// failures where the nonce is reset", Authentication Options of Intel's guide).
func (c *conn) refused(what string) error {
	if c.accepted {
		return &fault.Error{Kind: fault.Busy, What: what, Evidence: "HTTP 401", Err: driver.ErrSessionLost}
	}
	return &fault.Error{Kind: fault.Unauthorized, What: "log in as " + c.cfg.User, Evidence: "HTTP 401", Next: "correct the credential; after several wrong ones AMT locks the account for a while"}
}

// instances runs an enumeration that is to give instances of class. DSP0226 section 8: the Enumerate gives
// a context, Pulls give instances until the end of the sequence. MaxRequests bounds the Pulls.
func (c *conn) instances(ctx context.Context, class string, first message) ([]*node, error) {
	n, err := c.call(ctx, first, "EnumerateResponse")
	if err != nil {
		return nil, err
	}
	var out []*node
	for {
		if items := n.child("Items"); items != nil {
			for _, i := range items.children {
				if i.space == uri(class) && i.name == class {
					out = append(out, i)
				}
			}
		}
		next := n.value("EnumerationContext")
		if n.child("EndOfSequence") != nil || next == "" {
			return out, nil
		}
		if n, err = c.call(ctx, pull(first.class, next), "PullResponse"); err != nil {
			return nil, err
		}
	}
}

// invoke calls a method and returns its ReturnValue.
func (c *conn) invoke(ctx context.Context, m message) (uint16, error) {
	method := m.action[strings.LastIndexByte(m.action, '/')+1:]
	out, err := c.call(ctx, m, method+"_OUTPUT")
	if err != nil {
		return 0, err
	}
	v, ok := out.number("ReturnValue")
	if !ok {
		return 0, &fault.Error{Kind: fault.Internal, What: method, Evidence: "the answer has no return value"}
	}
	return v, nil
}

// Return values of CIM methods, as far as a kind depends on them (CIM schema 2.19, the ValueMaps of
// RequestPowerStateChange, ChangeBootOrder and SetBootConfigRole).
const (
	returnedOK            = 0
	returnedNotSupported  = 1
	returnedTimeout       = 3
	returnedInvalid       = 5
	returnedInUse         = 6
	returnedBadTransition = 4097
	returnedBusy          = 4099
)

// returnFault is the fault that a return value other than 0 stands for.
func returnFault(method string, v uint16) error {
	out := &fault.Error{Kind: fault.Internal, What: method, Evidence: fmt.Sprintf("return value %d", v)}
	switch v {
	case returnedOK:
		return nil
	case returnedNotSupported:
		out.Kind = fault.Unsupported
	case returnedTimeout:
		out.Kind = fault.Timeout
	case returnedInvalid:
		out.Kind = fault.Invalid
	case returnedInUse, returnedBadTransition, returnedBusy:
		out.Kind, out.Next = fault.Busy, "AMT refuses while a redirection session is open and until the firmware has finished the change before"
	}
	return out
}

// statusFault turns an HTTP status into a fault.
func statusFault(status int, body []byte) *fault.Error {
	out := &fault.Error{Kind: fault.Internal, What: "POST " + path, Evidence: fmt.Sprintf("HTTP %d %s", status, excerpt(body))}
	switch status {
	case http.StatusForbidden:
		out.Kind, out.Next = fault.Unauthorized, "give the AMT user the remote control realm"
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		out.Kind = fault.Unsupported
	case http.StatusBadRequest:
		out.Kind = fault.Invalid
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		out.Kind = fault.Busy
	}
	return out
}
