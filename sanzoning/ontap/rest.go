package ontap

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"rerack.dev/rerack/internal/fault"
)

const callTimeout = 10 * time.Second

// maxPages bounds a listing, so that an array which links its pages in a circle ends.
const maxPages = 1000

// rest makes single requests.
type rest struct {
	base  string
	name  string
	max   int64
	login func(ctx context.Context) (user, password string, err error)
	http  *http.Client
}

func newREST(c Config) rest {
	return rest{base: strings.TrimSuffix(c.URL, "/"), name: c.Name, max: c.MaxBytes, login: c.Login, http: &http.Client{
		Timeout:       callTimeout,
		Transport:     &http.Transport{TLSClientConfig: c.TLS, MaxConnsPerHost: 2, IdleConnTimeout: time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

func (r rest) send(ctx context.Context, method, path string, body any) error {
	_, err := r.do(ctx, method, path, body)
	return err
}

// list reads a collection, page by page.
func list[T any](ctx context.Context, r rest, path string) ([]T, error) {
	var out []T
	for range maxPages {
		raw, err := r.do(ctx, http.MethodGet, path, nil)
		if err != nil {
			return nil, err
		}
		var page struct {
			Records []T `json:"records"`
			Links   struct {
				Next struct {
					Href string `json:"href"`
				} `json:"next"`
			} `json:"_links"`
		}
		if err := json.Unmarshal(raw, &page); err != nil {
			return nil, r.fail(fault.Internal, "GET "+path, "the answer is not the JSON expected", err)
		}
		out = append(out, page.Records...)
		if path = page.Links.Next.Href; path == "" {
			return out, nil
		}
		if !strings.HasPrefix(path, "/api/") {
			return nil, r.fail(fault.Internal, "GET", "the next page is elsewhere: "+path, nil)
		}
	}
	return nil, r.fail(fault.Internal, "GET", fmt.Sprintf("more than %d pages", maxPages), nil)
}

func (r rest) do(ctx context.Context, method, path string, body any) ([]byte, error) {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, r.fail(fault.Internal, method, "", err)
		}
		in = bytes.NewReader(b)
	}
	what, _, _ := strings.Cut(path, "?")
	what = method + " " + what
	req, err := http.NewRequestWithContext(ctx, method, r.base+path, in)
	if err != nil {
		return nil, r.fail(fault.Internal, what, "", err)
	}
	user, password, err := r.login(ctx)
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth(user, password)
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := r.http.Do(req)
	if err != nil {
		var slow interface{ Timeout() bool }
		if errors.As(err, &slow) && slow.Timeout() {
			return nil, r.fail(fault.Timeout, what, "no answer in time", err)
		}
		return nil, r.fail(fault.Unreachable, what, "", err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, r.max+1))
	if err != nil {
		return nil, r.fail(fault.Unreachable, what, "the answer broke off", err)
	}
	if int64(len(raw)) > r.max {
		return nil, r.fail(fault.Internal, what, fmt.Sprintf("the answer is larger than %d bytes", r.max), nil)
	}
	if resp.StatusCode/100 == 2 {
		return raw, nil
	}
	var said struct {
		Error struct {
			Message string `json:"message"`
			Code    string `json:"code"`
		} `json:"error"`
	}
	_ = json.Unmarshal(raw, &said) // without a message the status must do
	return nil, r.fail(kindOf(resp.StatusCode), what, strings.TrimSpace(resp.Status+" "+said.Error.Code+" "+said.Error.Message), nil)
}

func kindOf(status int) fault.Kind {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fault.Unauthorized
	case http.StatusNotFound:
		return fault.NotFound
	case http.StatusConflict:
		return fault.Conflict
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return fault.Invalid
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return fault.Busy
	case http.StatusNotImplemented, http.StatusMethodNotAllowed:
		return fault.Unsupported
	}
	return fault.Internal
}

func (r rest) fail(k fault.Kind, what, evidence string, err error) error {
	return &fault.Error{Kind: k, Where: "array " + r.name + " at " + r.base, What: what, Evidence: evidence, Err: err}
}
