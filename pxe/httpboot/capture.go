package httpboot

import (
	"context"
	"encoding/json"
	"io"
	"net/http"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/capture"
)

// Captor gives orders to machines whose disk is copied, and makes their reports durable. It MUST return
// fault.Stale to a caller whose boot is over.
type Captor interface {
	Orders(ctx context.Context, by pxe.Caller) (capture.Orders, error)
	Report(ctx context.Context, by pxe.Caller, r capture.Report) (capture.State, error)
}

// OrdersRequest is what a machine posts to learn what to do, after it has phoned home.
type OrdersRequest struct {
	Nonce string `json:"nonce"`
}

// CaptureReport is what it posts while it works.
type CaptureReport struct {
	Nonce string `json:"nonce"`
	capture.Report
}

// ParseCaptureReport reads and checks a report. It returns fault.Invalid.
func ParseCaptureReport(body []byte) (CaptureReport, error) {
	var r CaptureReport
	err := decode(body, &r)
	if err == nil && !nonceForm.MatchString(r.Nonce) {
		err = fault.New(fault.Invalid, "nonce: want 16-64 letters, digits, '_' or '-'")
	}
	if err == nil {
		err = r.Validate()
	}
	if err != nil {
		return CaptureReport{}, err
	}
	return r, nil
}

func (h *Handler) orders(w http.ResponseWriter, r *http.Request, e *pxe.Entry) {
	body, ok := h.body(w, r)
	if !ok {
		return
	}
	var req OrdersRequest
	if err := decode(body, &req); err != nil || !nonceForm.MatchString(req.Nonce) {
		http.Error(w, "want nonce", http.StatusBadRequest)
		return
	}
	h.captured(w, r, e, req.Nonce, func(ctx context.Context, by pxe.Caller) (any, error) { return h.cfg.Captor.Orders(ctx, by) })
}

func (h *Handler) progress(w http.ResponseWriter, r *http.Request, e *pxe.Entry) {
	body, ok := h.body(w, r)
	if !ok {
		return
	}
	rep, err := ParseCaptureReport(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	h.captured(w, r, e, rep.Nonce, func(ctx context.Context, by pxe.Caller) (any, error) {
		return h.cfg.Captor.Report(ctx, by, rep.Report)
	})
}

func (h *Handler) body(w http.ResponseWriter, r *http.Request) ([]byte, bool) {
	if h.cfg.Captor == nil {
		http.NotFound(w, r)
		return nil, false
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, "body is too large or broken", http.StatusBadRequest)
		return nil, false
	}
	return body, true
}

// captured answers who has phoned home with this nonce.
func (h *Handler) captured(w http.ResponseWriter, r *http.Request, e *pxe.Entry, nonce string, do func(context.Context, pxe.Caller) (any, error)) {
	switch used := e.Nonce(); {
	case used == "":
		http.Error(w, "phone home first", http.StatusConflict)
		return
	case used != nonce:
		h.misused(e, source(r), "capture with another nonce: the token was replayed or stolen")
		http.Error(w, "boot token is used up", http.StatusGone)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), sinkTimeout)
	defer cancel()
	reply, err := do(ctx, pxe.Caller{Machine: e.Intent.Machine, Run: e.Intent.Run, Epoch: e.Intent.Epoch, From: source(r)})
	if err == nil {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(reply); err != nil {
			h.cfg.Logger.Debug("answer not sent", "machine", e.Intent.Machine, "err", err)
		}
		return
	}
	h.cfg.Logger.Warn("capture", "machine", e.Intent.Machine, "run", e.Intent.Run, "err", err)
	switch fault.KindOf(err) {
	case fault.Stale, fault.NotFound:
		http.Error(w, "this boot is over", http.StatusGone)
	case fault.Conflict, fault.Unsafe:
		http.Error(w, err.Error(), http.StatusConflict)
	case fault.Invalid:
		http.Error(w, "report refused", http.StatusBadRequest)
	default:
		w.Header().Set("Retry-After", "2")
		http.Error(w, "not recorded: try again", http.StatusServiceUnavailable)
	}
}
