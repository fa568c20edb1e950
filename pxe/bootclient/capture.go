package bootclient

import (
	"context"
	"encoding/json"
	"net/http"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/capture"
	"rerack.dev/rerack/pxe/httpboot"
)

// Orders asks beside the phone-home URL what to copy, after the phone-home with the same nonce.
func Orders(ctx context.Context, c *http.Client, phoneHome, nonce string) (capture.Orders, error) {
	var o capture.Orders
	err := ask(ctx, c, beside(phoneHome, pxe.PathOrders), httpboot.OrdersRequest{Nonce: nonce}, &o)
	if err == nil {
		err = o.Validate()
	}
	return o, err
}

// ReportCapture makes a report durable at the server, and returns where the capture stands then.
// fault.Conflict means that it stands elsewhere, or that another boot has taken this one's place.
func ReportCapture(ctx context.Context, c *http.Client, phoneHome, nonce string, r capture.Report) (capture.State, error) {
	var s capture.State
	err := ask(ctx, c, beside(phoneHome, pxe.PathReport), httpboot.CaptureReport{Nonce: nonce, Report: r}, &s)
	return s, err
}

func beside(phoneHome, path string) string {
	if n := len(phoneHome) - len(pxe.PathPhoneHome); n > 0 {
		phoneHome = phoneHome[:n] + path
	}
	return phoneHome
}

func ask(ctx context.Context, c *http.Client, u string, in, out any) error {
	b, err := post(ctx, c, u, in)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return &fault.Error{Kind: fault.Internal, What: "read the boot server's answer", Err: err}
	}
	return nil
}
