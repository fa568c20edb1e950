package importer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/images"
)

// File is one file of an image, still where it comes from.
type File struct {
	Role   images.Role
	Name   string     // for people
	Size   int64      // bytes; 0 when the source does not tell
	Digest pxe.Digest // empty when nothing vouches for it
	Remote bool       // not on this machine: reading it twice costs
	// Open may be called more than once. What it returns ends with an error when it is not what Size and Digest say.
	Open func(ctx context.Context) (io.ReadCloser, error)
}

// Local is a file of this machine. want may be empty.
func Local(role images.Role, path string, want pxe.Digest) (File, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return File{}, &fault.Error{Kind: fault.Invalid, What: "read " + string(role), Err: err}
	}
	if !fi.Mode().IsRegular() {
		return File{}, &fault.Error{Kind: fault.Invalid, Where: path, What: "read " + string(role), Evidence: "it is not a file"}
	}
	f := File{Role: role, Name: filepath.Base(path), Size: fi.Size(), Digest: want}
	f.Open = func(context.Context) (io.ReadCloser, error) {
		r, err := os.Open(path)
		if err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, What: "read " + string(role), Err: err}
		}
		return &proven{ReadCloser: r, file: f, sum: sha256.New()}, nil
	}
	return f, nil
}

// Digest reads a file to its end and returns what it is, with its size.
func Digest(ctx context.Context, f File) (pxe.Digest, int64, error) {
	r, err := f.Open(ctx)
	if err != nil {
		return "", 0, err
	}
	defer r.Close()
	h := sha256.New()
	n, err := io.Copy(h, Checked(f.Role, ctxReader{ctx, r}))
	return pxe.DigestOf([32]byte(h.Sum(nil))), n, fault.Wrap(err, "read "+string(f.Role), f.Name)
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

// proven passes a stream on and compares its size and digest with what the file was said to be: at its end, or
// when it grows too long.
type proven struct {
	io.ReadCloser
	file File
	sum  hash.Hash
	n    int64
}

func (p *proven) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	p.n += int64(n)
	p.sum.Write(b[:n])
	switch size := p.file.Size; {
	case size > 0 && p.n > size:
		return 0, p.wrong(fmt.Sprintf("it goes on after its %d bytes", size))
	case errors.Is(err, io.ErrUnexpectedEOF) || err == io.EOF && p.n < size:
		return n, p.wrong(fmt.Sprintf("it is cut off after %d of %d bytes", p.n, size))
	case err == io.EOF && p.file.Digest != "":
		if got := pxe.DigestOf([32]byte(p.sum.Sum(nil))); got != p.file.Digest {
			return n, p.wrong("content is " + string(got) + ", expected " + string(p.file.Digest))
		}
	}
	return n, err
}

func (p *proven) wrong(evidence string) error {
	return &fault.Error{Kind: fault.Unverified, Where: p.file.Name, What: "read " + string(p.file.Role), Evidence: evidence,
		Next: "get the file again from its maker; nothing of it was kept"}
}
