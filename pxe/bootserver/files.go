package bootserver

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/grub"
	"rerack.dev/rerack/pxe/tftp"
)

// files is all that TFTP gives out: loaders by their names, the file that every GRUB asks for, and below
// boot/<token>/ what the machine of the token loads with GRUB. It obeys the same rules as package
// httpboot: nothing for a token that is past its end or used up, nothing to boot for who is held.
type files struct {
	cfg      *Config
	decider  *pxe.Decider
	reporter *pxe.Reporter
}

var errNoFile = fault.New(fault.NotFound, "no file of this name")

func (f *files) open(name string, from netip.AddrPort) (tftp.File, error) {
	if d, ok := f.cfg.Loaders[name]; ok {
		return f.cfg.Images.Open(d)
	}
	if name == grub.EntryPath {
		return newText(grub.Entry()), nil
	}
	e, rest, ok := f.entry(name)
	if !ok || f.decider.Expired(e) {
		return nil, errNoFile
	}
	loader, isLoader := f.cfg.Loaders[rest]
	file, isFile := content(e, rest)
	isConfig := rest == pxe.PathConfig
	switch {
	case !isLoader && !isFile && !isConfig:
		return nil, errNoFile
	case f.cfg.CheckSource && !e.Owns(from.Addr()):
		return nil, f.misused(e, from, "token used from an address that is not the machine's")
	case e.Nonce() != "":
		return nil, f.misused(e, from, "used token asks for "+rest)
	case isLoader:
		return f.image(e, from, loader)
	case isConfig:
		b, err := config(f.decider, e)
		return newText(b), err
	case e.Intent.Held:
		return nil, errNoFile
	}
	return f.image(e, from, file)
}

// image opens a file that a machine is meant to have.
func (f *files) image(e *pxe.Entry, from netip.AddrPort, d pxe.Digest) (tftp.File, error) {
	file, err := f.cfg.Images.Open(d)
	if err != nil {
		f.reporter.Note(e, pxe.KindAlarm, from.Addr(), fmt.Sprintf("image not served (%v): %s", fault.KindOf(err), d))
	}
	return file, err
}

func (f *files) misused(e *pxe.Entry, from netip.AddrPort, how string) error {
	f.cfg.Logger.Warn("boot token misused", "machine", e.Intent.Machine, "run", e.Intent.Run, "from", from.Addr(), "what", how)
	f.reporter.Note(e, pxe.KindAlarm, from.Addr(), how)
	return errNoFile
}

// sent reports what a machine has now.
func (f *files) sent(name string, to netip.AddrPort, size int64) {
	if e, rest, ok := f.entry(name); ok {
		if _, is := f.cfg.Loaders[rest]; is {
			f.reporter.Note(e, pxe.KindBootFile, to.Addr(), rest)
		} else if rest == pxe.PathConfig {
			f.reporter.Note(e, pxe.KindScript, to.Addr(), "")
		} else if d, is := content(e, rest); is && !strings.HasPrefix(rest, pxe.PathInitrd) {
			f.reporter.Note(e, pxe.KindKernel, to.Addr(), string(d))
		}
	}
	if f.cfg.OnSent != nil {
		f.cfg.OnSent(name, to, size)
	}
}

// entry finds the machine whose token a name holds, and what follows that.
func (f *files) entry(name string) (e *pxe.Entry, rest string, ok bool) {
	below, _ := strings.CutPrefix(name, pxe.Root+"/")
	token, rest, _ := strings.Cut(below, "/")
	tok, err := pxe.ParseToken(token)
	if err != nil || below == name {
		return nil, "", false
	}
	e, ok = f.decider.Table.ByToken(tok)
	return e, rest, ok
}

// content is the file that a machine boots which is called so.
func content(e *pxe.Entry, name string) (pxe.Digest, bool) {
	switch b := e.Intent.Boot; {
	case b == nil || !b.ByGRUB():
	case b.HTTP != nil:
		return b.HTTP.File, name == b.HTTP.Path()
	case name == pxe.PathKernel:
		return b.Kernel.Kernel, true
	default:
		number, ok := strings.CutPrefix(name, pxe.PathInitrd)
		n, err := strconv.ParseUint(number, 10, 8)
		if ok && err == nil && n < uint64(len(b.Kernel.Initrds)) {
			return b.Kernel.Initrds[n], true
		}
	}
	return "", false
}

// config writes what GRUB does for the machine of e.
func config(d *pxe.Decider, e *pxe.Entry) ([]byte, error) {
	path := func(name string) string { return "/" + e.Path(name) }
	switch b := e.Intent.Boot; {
	case b == nil || !b.ByGRUB():
		return nil, errNoFile
	case e.Intent.Held:
		return grub.Hold(), nil
	case b.HTTP != nil:
		return grub.EFI(path(b.HTTP.Path()))
	default:
		initrds := make([]string, len(b.Kernel.Initrds))
		for i := range initrds {
			initrds[i] = path(pxe.PathInitrd + strconv.Itoa(i))
		}
		return grub.Linux(path(pxe.PathKernel), initrds, d.Params(e))
	}
}

// text is a file that is made when it is asked for.
type text struct{ *bytes.Reader }

func newText(b []byte) text { return text{bytes.NewReader(b)} }

// Close implements tftp.File.
func (text) Close() error { return nil }
