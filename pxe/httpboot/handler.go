// Package httpboot serves what a booting machine fetches over HTTP, and takes its reports.
//
//	GET  /boot/<token>/script.ipxe     the iPXE script made from the machine's intent
//	GET  /boot/<token>/kernel          the kernel; initrd/<n>, loader/<name>, image/<name> alike
//	POST /boot/<token>/phone-home      a report of the booted system
//	POST /boot/<token>/join            the certificate request of its agent
//	POST /boot/<token>/capture/orders  what a machine whose disk is copied shall do
//	POST /boot/<token>/capture/report  how far it has come
//
// There is no other path, no directory, and nothing without a token: files are served by the digest in
// the intent that the token belongs to.
package httpboot

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/images"
	"rerack.dev/rerack/pxe/ipxe"
)

// Config of a Handler.
type Config struct {
	Decider  *pxe.Decider
	Images   *images.Store
	Loaders  map[string]pxe.Digest // boot loaders by file name, see pxe.Arch.Loader
	Sink     pxe.Milestones        // durable: phone-home waits for it
	Reporter *pxe.Reporter         // for the rest
	Joiner   pxe.Joiner            // optional: without it join is refused
	Captor   Captor                // optional: without it there are no captures
	// CHAP resolves the names of secrets that intents boot with; without it none can.
	CHAP func(ctx context.Context, name string) (ipxe.Login, error)
	// CheckSource takes a token only from an address of its machine. Not behind NAT or a proxy.
	CheckSource bool
	// AgentHosts are where the agent URL in a report may point besides the machine's own addresses.
	AgentHosts []netip.Prefix
	Logger     *slog.Logger
}

// Validate names the first key that is wrong.
func (c *Config) Validate() error {
	switch {
	case c.Decider == nil:
		return fault.New(fault.Invalid, "httpboot.Decider is missing")
	case c.Images == nil:
		return fault.New(fault.Invalid, "httpboot.Images is missing")
	case c.Sink == nil || c.Reporter == nil:
		return fault.New(fault.Invalid, "httpboot.Sink or Reporter is missing")
	}
	for name, d := range c.Loaders {
		if _, err := pxe.ParseDigest(string(d)); err != nil {
			return fault.Wrap(err, "validate", "httpboot.Loaders["+name+"]")
		}
	}
	return c.Decider.Validate()
}

// Handler is the http.Handler of the boot plane.
type Handler struct {
	cfg Config
	mux *http.ServeMux
}

// New checks the configuration and makes a handler.
func New(c Config) (*Handler, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	h := &Handler{cfg: c, mux: http.NewServeMux()}
	h.mux.HandleFunc("GET /boot/{token}/"+pxe.PathScript, h.booting(h.script))
	h.mux.HandleFunc("GET /boot/{token}/"+pxe.PathKernel, h.booting(released(h.kernel)))
	h.mux.HandleFunc("GET /boot/{token}/"+pxe.PathInitrd+"{n}", h.booting(released(h.initrd)))
	h.mux.HandleFunc("GET /boot/{token}/"+pxe.PathLoader+"{name}", h.booting(h.loader))
	h.mux.HandleFunc("GET /boot/{token}/image/{name}", h.booting(released(h.image)))
	h.mux.HandleFunc("POST /boot/{token}/"+pxe.PathPhoneHome, h.owned(h.phoneHome))
	h.mux.HandleFunc("POST /boot/{token}/"+pxe.PathJoin, h.owned(h.join))
	h.mux.HandleFunc("POST /boot/{token}/"+pxe.PathOrders, h.owned(h.orders))
	h.mux.HandleFunc("POST /boot/{token}/"+pxe.PathReport, h.owned(h.progress))
	return h, nil
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	h.mux.ServeHTTP(w, r)
}

type served func(w http.ResponseWriter, r *http.Request, e *pxe.Entry)

// owned finds the machine a token belongs to, and refuses one that is unknown, past its end, or used
// from elsewhere.
func (h *Handler) owned(next served) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		tok, err := pxe.ParseToken(r.PathValue("token"))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		e, ok := h.cfg.Decider.Table.ByToken(tok)
		if !ok {
			http.NotFound(w, r)
			return
		}
		from := source(r)
		if h.cfg.CheckSource && !e.Owns(from) {
			h.alarm(e, from, "token used from an address that is not the machine's")
			http.Error(w, "not this machine's token", http.StatusForbidden)
			return
		}
		if h.cfg.Decider.Expired(e) {
			http.Error(w, "boot token is past its end", http.StatusGone)
			return
		}
		next(w, r, e)
	}
}

// booting is owned for what only a machine that has not phoned home yet may fetch.
func (h *Handler) booting(next served) http.HandlerFunc {
	return h.owned(func(w http.ResponseWriter, r *http.Request, e *pxe.Entry) {
		if e.Nonce() != "" {
			what := r.Pattern[strings.LastIndex(r.Pattern, "}/")+2:] // never the token
			h.alarm(e, source(r), "used token asks for "+what)
			http.Error(w, "boot token is used up", http.StatusGone)
			return
		}
		next(w, r, e)
	})
}

// released keeps from a machine that is held what it would boot.
func released(next served) served {
	return func(w http.ResponseWriter, r *http.Request, e *pxe.Entry) {
		if e.Intent.Held {
			http.Error(w, "this machine is held", http.StatusConflict)
			return
		}
		next(w, r, e)
	}
}

func (h *Handler) script(w http.ResponseWriter, r *http.Request, e *pxe.Entry) {
	login, err := h.login(r.Context(), e)
	var b []byte
	if err == nil {
		b, err = Script(h.cfg.Decider, e, login)
	}
	if err != nil {
		h.cfg.Logger.Error("no boot script", "machine", e.Intent.Machine, "run", e.Intent.Run, "err", err)
		http.Error(w, "no boot script", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	if _, err := w.Write(b); err == nil && r.Method == http.MethodGet {
		h.cfg.Reporter.Note(e, pxe.KindScript, source(r), "")
	}
}

// login is what the machine logs in to its boot volume with. A machine that is held gets it later.
func (h *Handler) login(ctx context.Context, e *pxe.Entry) (ipxe.Login, error) {
	b := e.Intent.Boot
	switch {
	case b == nil || b.CHAP == "" || e.Intent.Held:
		return ipxe.Login{}, nil
	case h.cfg.CHAP == nil:
		return ipxe.Login{}, &fault.Error{Kind: fault.Unsupported, Where: "machine " + e.Intent.Machine, What: "resolve secret " + b.CHAP}
	}
	return h.cfg.CHAP(ctx, b.CHAP)
}

// Script writes the boot script of an intent; login is for its boot volume.
func Script(d *pxe.Decider, e *pxe.Entry, login ipxe.Login) ([]byte, error) {
	switch b := e.Intent.Boot; {
	case b == nil:
		return ipxe.Exit(), nil
	case e.Intent.Held:
		return ipxe.Hold(d.URL(e, pxe.PathScript))
	case b.Kernel != nil:
		initrds := make([]string, len(b.Kernel.Initrds))
		for i := range initrds {
			initrds[i] = d.URL(e, pxe.PathInitrd+strconv.Itoa(i))
		}
		return ipxe.Linux(d.URL(e, pxe.PathKernel), initrds, d.Params(e))
	case b.ISCSI != nil:
		return ipxe.SAN(*b.ISCSI, login)
	case b.HTTP != nil && b.HTTP.Form == pxe.FormEFI:
		return ipxe.EFI(d.URL(e, b.HTTP.Path()))
	case b.HTTP != nil:
		return ipxe.Disk(d.URL(e, b.HTTP.Path()))
	default:
		return ipxe.LocalDisk(), nil
	}
}

func (h *Handler) alarm(e *pxe.Entry, from netip.Addr, what string) {
	h.cfg.Logger.Warn("boot token misused", "machine", e.Intent.Machine, "run", e.Intent.Run, "from", from.String(), "what", what)
	h.cfg.Reporter.Note(e, pxe.KindAlarm, from, what)
}

func source(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// slowest is what a machine must read at, bytes a second; grace is added for a link that pauses.
const (
	slowest = 64 << 10
	grace   = 30 * time.Second
)

func (h *Handler) kernel(w http.ResponseWriter, r *http.Request, e *pxe.Entry) {
	if k := e.Intent.Boot.Kernel; k == nil {
		http.NotFound(w, r)
	} else if h.file(w, r, e, k.Kernel, "application/octet-stream") {
		h.cfg.Reporter.Note(e, pxe.KindKernel, source(r), string(k.Kernel))
	}
}

func (h *Handler) initrd(w http.ResponseWriter, r *http.Request, e *pxe.Entry) {
	k := e.Intent.Boot.Kernel
	n, err := strconv.ParseUint(r.PathValue("n"), 10, 8)
	if k == nil || err != nil || n >= uint64(len(k.Initrds)) {
		http.NotFound(w, r)
		return
	}
	h.file(w, r, e, k.Initrds[n], "application/octet-stream")
}

func (h *Handler) loader(w http.ResponseWriter, r *http.Request, e *pxe.Entry) {
	d, ok := h.cfg.Loaders[r.PathValue("name")]
	if !ok {
		http.NotFound(w, r)
	} else if h.file(w, r, e, d, "application/efi") {
		h.cfg.Reporter.Note(e, pxe.KindBootFile, source(r), r.PathValue("name"))
	}
}

func (h *Handler) image(w http.ResponseWriter, r *http.Request, e *pxe.Entry) {
	i := e.Intent.Boot.HTTP
	if i == nil || "image/"+r.PathValue("name") != i.Path() {
		http.NotFound(w, r)
		return
	}
	media := "application/vnd.efi.img" // UEFI 2.10 section 24.7.1.2: media types of a RAM disk
	if i.Form == pxe.FormEFI {
		media = "application/efi"
	}
	if h.file(w, r, e, i.File, media) {
		h.cfg.Reporter.Note(e, pxe.KindKernel, source(r), string(i.File))
	}
}

// file serves a checked image, with ranges; it reports whether the client got its end.
func (h *Handler) file(w http.ResponseWriter, r *http.Request, e *pxe.Entry, d pxe.Digest, media string) (ended bool) {
	f, err := h.cfg.Images.Open(d)
	if err != nil {
		h.cfg.Logger.Error("image not served", "machine", e.Intent.Machine, "run", e.Intent.Run, "err", err)
		h.cfg.Reporter.Note(e, pxe.KindAlarm, source(r), fmt.Sprintf("image not served (%v): %s", fault.KindOf(err), d))
		http.Error(w, "image cannot be served", http.StatusServiceUnavailable)
		return false
	}
	defer f.Close()
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(grace + time.Duration(f.Size()/slowest)*time.Second))
	w.Header().Set("Content-Type", media)
	w.Header().Set("ETag", `"`+d.Hex()+`"`)
	c := &counter{ResponseWriter: w}
	http.ServeContent(c, r, "", f.ModTime(), f.File)
	last := fmt.Sprintf("-%d/%d", f.Size()-1, f.Size())
	whole := c.status == http.StatusOK || strings.HasSuffix(w.Header().Get("Content-Range"), last)
	return whole && r.Method == http.MethodGet && strconv.FormatInt(c.n, 10) == w.Header().Get("Content-Length")
}
