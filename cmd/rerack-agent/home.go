package main

import (
	"context"
	"net/http"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootclient"
	"rerack.dev/rerack/pxe/httpboot"
)

// home is the boot plane that this machine was booted by.
type home struct {
	url, nonce string
	client     *http.Client
}

// reportTimeout bounds one post; the boot server waits up to 15 s until a report is durable.
const reportTimeout = 20 * time.Second

// newHome takes from the kernel's parameters where to report to. The nonce is of this boot.
func newHome(params map[string]string) (*home, error) {
	url := params[pxe.PhoneHomeParam]
	if url == "" {
		return nil, &fault.Error{Kind: fault.Invalid, Where: "kernel parameter " + pxe.PhoneHomeParam, What: "it is missing", Next: "boot this machine through Rerack"}
	}
	return &home{url: url, nonce: bootclient.NewNonce(), client: &http.Client{Timeout: reportTimeout, Transport: &http.Transport{DisableKeepAlives: true}}}, nil
}

// PhoneHome implements hostd.Home.
func (h *home) PhoneHome(ctx context.Context, agentURL string) error {
	return bootclient.Report(ctx, h.client, h.url, httpboot.Report{Nonce: h.nonce, AgentURL: agentURL})
}

// Join implements hostd.Home.
func (h *home) Join(ctx context.Context, csr []byte) (certificate, ca []byte, err error) {
	j, err := bootclient.Join(ctx, h.client, h.url, httpboot.JoinRequest{Nonce: h.nonce, CSR: string(csr)})
	return []byte(j.Certificate), []byte(j.CA), err
}

// Healthy implements hostd.Home.
func (h *home) Healthy(ctx context.Context) error { return h.milestone(ctx, pxe.KindHealthy, "") }

// maxDetail is what the boot plane takes, in bytes.
const maxDetail = 1024

// milestone reports how far this boot has come.
func (h *home) milestone(ctx context.Context, kind pxe.Kind, detail string) error {
	return bootclient.Report(ctx, h.client, h.url, httpboot.Report{Nonce: h.nonce, Milestone: kind.String(), Detail: detail[:min(len(detail), maxDetail)]})
}
