package importer

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/images"
)

const (
	maxRedirects = 5
	// silence is how long a server may send nothing.
	silence = time.Minute
)

// IsURL reports whether a file is named by its URL.
func IsURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https")
}

// Remote is a file at a URL. Its digest must be known from elsewhere: what sends a file can send its checksum too.
func Remote(role images.Role, at string, want pxe.Digest, c *http.Client) (File, error) {
	u, err := url.Parse(at)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https" {
		return File{}, &fault.Error{Kind: fault.Invalid, What: fmt.Sprintf("URL %.200q", at), Next: "write http(s)://host/path, without a user"}
	}
	if _, err := pxe.ParseDigest(string(want)); err != nil {
		return File{}, &fault.Error{Kind: fault.Invalid, Where: at, What: "fetch " + string(role), Evidence: "there is no checksum to hold it to",
			Next: "name its SHA-256, as its maker publishes it, with --sha256"}
	}
	f := File{Role: role, Name: path.Base(u.Path), Digest: want, Remote: true}
	f.Open = func(ctx context.Context) (io.ReadCloser, error) { return get(ctx, c, u, f) }
	return f, nil
}

func get(ctx context.Context, c *http.Client, u *url.URL, f File) (io.ReadCloser, error) {
	failed := func(kind fault.Kind, what string, err error) error {
		return &fault.Error{Kind: kind, Where: u.Host, What: what, Err: err}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	quiet := time.AfterFunc(silence, func() { cancel(failed(fault.Timeout, "it sends nothing", nil)) })
	own := *c
	own.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects || r.URL.Scheme != u.Scheme || r.URL.Host != u.Host {
			return failed(fault.Unsupported, "it redirects to "+r.URL.Scheme+"://"+r.URL.Host, nil)
		}
		return nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, failed(fault.Invalid, "fetch", err)
	}
	req.Header.Set("Accept-Encoding", "identity") // the checksum is of the file as it lies there
	resp, err := own.Do(req)
	if err != nil {
		quiet.Stop()
		cancel(nil)
		if fault.Is(err, fault.Unsupported) {
			return nil, err
		}
		return nil, failed(fault.Unreachable, "fetch "+f.Name, err)
	}
	body := &fetched{ReadCloser: resp.Body, quiet: quiet, ctx: ctx, cancel: cancel}
	if resp.StatusCode != http.StatusOK {
		body.Close()
		kind := fault.Unreachable
		if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone {
			kind = fault.NotFound
		}
		return nil, failed(kind, "fetch "+f.Name+": it answers "+resp.Status, nil)
	}
	f.Size = max(resp.ContentLength, 0)
	return &proven{ReadCloser: body, file: f, sum: sha256.New()}, nil
}

// fetched is a body whose server must not fall silent.
type fetched struct {
	io.ReadCloser
	quiet  *time.Timer
	ctx    context.Context // tells why a read was ended
	cancel context.CancelCauseFunc
}

func (f *fetched) Read(b []byte) (int, error) {
	f.quiet.Reset(silence)
	n, err := f.ReadCloser.Read(b)
	f.quiet.Stop() // who reads may take its time
	if err != nil && f.ctx.Err() != nil {
		err = context.Cause(f.ctx)
	}
	return n, err
}

func (f *fetched) Close() error {
	f.quiet.Stop()
	defer f.cancel(nil)
	return f.ReadCloser.Close()
}

// Download keeps a file in a folder of this machine, for what must be read here and there, as an ISO image.
func Download(ctx context.Context, f File, dir string) (string, error) {
	r, err := f.Open(ctx)
	if err != nil {
		return "", err
	}
	defer r.Close()
	to, err := os.CreateTemp(dir, "image-*")
	if err != nil {
		return "", fault.Wrap(err, "keep", f.Name)
	}
	_, err = io.Copy(to, Checked(f.Role, r))
	if cerr := to.Close(); err == nil {
		err = cerr
	}
	return to.Name(), fault.Wrap(err, "fetch", f.Name)
}
