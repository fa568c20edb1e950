package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"rerack.dev/rerack/internal/fault"
)

const defaultServer = "http://127.0.0.1:7070"

// global are the flags every command has.
type global struct {
	server, token, dataDir, output string
}

// client talks to the API.
type client struct {
	base, token, actor string
	http               http.Client
}

func (g *global) client() (*client, error) {
	base, err := address(g.server)
	if err != nil {
		return nil, err
	}
	c := &client{base: base + "/api/v1", token: os.Getenv("RERACK_TOKEN"), actor: "unknown"}
	if u, err := user.Current(); err == nil {
		c.actor = u.Username
	}
	if a := os.Getenv("RERACK_ACTOR"); a != "" {
		c.actor = a
	}
	if c.token != "" && g.token == "" {
		return c, checkToken("RERACK_TOKEN", c.token)
	}
	path := g.token
	if path == "" {
		path = filepath.Join(g.dataDir, "admin.token")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, What: "no API token", Err: err,
			Next: "set RERACK_TOKEN, or --token-file, or --data-dir of the server on this machine"}
	}
	c.token = strings.TrimSpace(string(b))
	return c, checkToken(path, c.token)
}

// address accepts host:port for http://host:port.
func address(server string) (string, error) {
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return "", &fault.Error{Kind: fault.Invalid, What: fmt.Sprintf("server address %q", server), Next: "write http://host:port"}
	}
	return strings.TrimSuffix(server, "/"), nil
}

// checkToken refuses what no server can have given, so that it is never sent.
func checkToken(where, token string) error {
	if token == "" || len(token) > 4096 || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return &fault.Error{Kind: fault.Invalid, Where: where, What: "it holds no API token", Next: "name the server's admin.token"}
	}
	return nil
}

func (c *client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	return c.request(ctx, method, path, "application/json", body)
}

// request sends a body of some media type, or none, and makes an error of any answer but success.
func (c *client) request(ctx context.Context, method, path, media string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, What: "server address", Err: err}
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("X-Rerack-Actor", c.actor)
	if body != nil {
		req.Header.Set("Content-Type", media)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Unreachable, Where: c.base, What: "the server does not answer", Err: err,
			Next: "start it with rerack server, or set --server"}
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	var p struct {
		Title  string
		Detail string
		Errors []struct{ Message, Location string }
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 4<<20)).Decode(&p); err != nil {
		return nil, &fault.Error{Kind: fault.Internal, Where: req.URL.String(), What: "the server answers " + resp.Status,
			Next: "see that --server names a rerack server of this version"}
	}
	detail := p.Detail
	if len(p.Errors) > 0 {
		lines := make([]string, len(p.Errors))
		for i, e := range p.Errors {
			lines[i] = e.Message
			if p.Detail == validationFailed {
				lines[i] = e.Location + ": " + e.Message
			}
		}
		detail = fmt.Sprintf("%s: %d errors\n%s", p.Title, len(lines), strings.Join(lines, "\n"))
	}
	kind := fault.ParseKind(p.Title)
	if resp.StatusCode == http.StatusUnprocessableEntity {
		kind = fault.Invalid
	}
	return nil, fault.New(kind, detail)
}

// validationFailed is what the API's framework says of a request that its schema refuses; the errors of a
// topology name their place themselves.
const validationFailed = "validation failed"

// call does a request and decodes the answer into out unless that is nil.
func (c *client) call(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	resp, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, _ = io.Copy(io.Discard, resp.Body) // a server whose answer is not taken would report that as a failure of its own
		return nil
	}
	return decode(resp.Body, out)
}

func decode(r io.Reader, out any) error {
	if err := json.NewDecoder(r).Decode(out); err != nil {
		return &fault.Error{Kind: fault.Internal, What: "read the server's answer", Err: err}
	}
	return nil
}

// get is call for reading.
func get[T any](ctx context.Context, c *client, path string) (T, error) {
	var out T
	return out, c.call(ctx, http.MethodGet, path, nil, &out)
}

// watch reads server-sent events into each until the stream or ctx ends (WHATWG HTML, section 9.2).
func watch[T any](ctx context.Context, c *client, path string, each func(T) error) error {
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data:")
		if !ok {
			continue
		}
		var v T
		if err := json.Unmarshal([]byte(data), &v); err != nil {
			return &fault.Error{Kind: fault.Internal, What: "read an event", Err: err}
		}
		if err := each(v); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil && !errors.Is(err, context.Canceled) {
		return &fault.Error{Kind: fault.Unreachable, What: "the server closed the stream", Err: err}
	}
	return ctx.Err()
}
