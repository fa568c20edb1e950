package lab

import (
	"context"
	"net/http"
	"time"

	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootclient"
	"rerack.dev/rerack/pxe/httpboot"
)

// reporter posts what a booted system has to say to the URL on its command line.
type reporter struct {
	box    *box
	url    string
	nonce  string
	client *http.Client
}

// reportTimeout bounds one post; the boot server waits up to 15 s until a report is durable.
const reportTimeout = 20 * time.Second

// reporter is nil when there is nobody to report to.
func (b *box) reporter(url string) *reporter {
	if url == "" {
		return nil
	}
	return &reporter{box: b, url: url, nonce: bootclient.NewNonce(), client: &http.Client{Timeout: reportTimeout,
		Transport: &http.Transport{DialContext: b.dial, DisableKeepAlives: true}}}
}

// phoneHome reports until that was accepted. It is false when the power went first, or when this boot
// is over and nobody wants to hear of it any more.
func (r *reporter) phoneHome(ctx context.Context, agentURL string) bool {
	return r.send(ctx, httpboot.Report{Nonce: r.nonce, AgentURL: agentURL})
}

// healthy reports that the system works.
func (r *reporter) healthy(ctx context.Context) {
	r.send(ctx, httpboot.Report{Nonce: r.nonce, Milestone: pxe.KindHealthy.String()})
}

func (r *reporter) send(ctx context.Context, rep httpboot.Report) bool {
	err := bootclient.Report(ctx, r.client, r.url, rep)
	if err != nil && ctx.Err() == nil {
		r.box.log.Warn("report refused", "err", err)
	}
	return err == nil
}
