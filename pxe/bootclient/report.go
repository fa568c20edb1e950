package bootclient

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/httpboot"
)

// NewNonce draws the nonce of one boot: 26 characters, 128 bits.
func NewNonce() string { return rand.Text() }

// Report posts a milestone to the phone-home URL of an Outcome, again and again with growing pauses,
// until it is durable at the other side (nil), refused, or ctx ends. fault.Conflict means that the token
// is used up or past its end: some other boot has taken its place.
func Report(ctx context.Context, c *http.Client, phoneHome string, r httpboot.Report) error {
	_, err := post(ctx, c, phoneHome, r)
	return err
}

// Join posts the certificate request of an agent beside the phone-home URL.
func Join(ctx context.Context, c *http.Client, phoneHome string, r httpboot.JoinRequest) (httpboot.JoinReply, error) {
	var reply httpboot.JoinReply
	err := ask(ctx, c, beside(phoneHome, pxe.PathJoin), r, &reply)
	return reply, err
}

func post(ctx context.Context, c *http.Client, u string, body any) ([]byte, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, fault.Wrap(err, "write report", "boot client")
	}
	wait := 200 * time.Millisecond
	for {
		reply, err := postOnce(ctx, c, u, b)
		if err == nil || !fault.KindOf(err).Retryable() {
			return reply, err
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, err
		case <-t.C:
		}
		wait = min(2*wait, 5*time.Second)
	}
}

func postOnce(ctx context.Context, c *http.Client, u string, b []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, bytes.NewReader(b))
	if err != nil {
		return nil, fault.New(fault.Invalid, "phone-home URL is malformed")
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Unreachable, What: "report to the boot server", Err: withoutURL(err)}
	}
	defer resp.Body.Close()
	reply, err := io.ReadAll(io.LimitReader(resp.Body, 256<<10))
	if err != nil {
		return nil, &fault.Error{Kind: fault.Unreachable, What: "read the boot server's answer", Err: err}
	}
	kind := fault.Invalid
	switch s := resp.StatusCode; {
	case s/100 == 2:
		return reply, nil
	case s == http.StatusGone, s == http.StatusConflict:
		kind = fault.Conflict
	case s == http.StatusNotFound:
		kind = fault.NotFound
	case s == http.StatusForbidden, s == http.StatusUnauthorized:
		kind = fault.Unauthorized
	case s == http.StatusServiceUnavailable, s == http.StatusTooManyRequests:
		kind = fault.Busy
	case s >= 500:
		kind = fault.Internal
	}
	return nil, &fault.Error{Kind: kind, What: "report to the boot server", Evidence: resp.Status}
}
