package pxetest_test

import (
	"net/http"
	"strings"
	"testing"

	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootclient"
	"rerack.dev/rerack/pxe/pxetest"
)

// A machine that is held comes as far as iPXE and no further; let go, it boots under the same token.
func TestHeldMachineWaits(t *testing.T) {
	for _, tt := range []struct {
		name string
		arch pxe.Arch
		boot func(*pxetest.Site) *pxe.Boot
		want bootclient.End
	}{
		{"kernel on BIOS", pxe.ArchBIOS, (*pxetest.Site).KernelBoot, bootclient.EndKernel},
		{"kernel on arm64", pxe.ArchEFIARM64, (*pxetest.Site).KernelBoot, bootclient.EndKernel},
		{"disk behind an HBA", pxe.ArchEFIX64, func(*pxetest.Site) *pxe.Boot { return &pxe.Boot{LocalDisk: true} }, bootclient.EndLocalDisk},
		// Firmware that boots over HTTP by itself could not be held: it gets the loader first.
		{"image by firmware", pxe.ArchHTTPX64, func(s *pxetest.Site) *pxe.Boot {
			return &pxe.Boot{HTTP: &pxe.Image{File: s.KernelBoot().Kernel.Kernel, Form: pxe.FormEFI}}
		}, bootclient.EndImage},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := pxetest.Start(t, nil, nil)
			in := s.Intent(1, tt.boot(s))
			in.Held = true
			s.Set(in)
			ended := make(chan bootclient.Outcome, 1)
			asked := make(chan struct{}, 100)
			c := s.Client(1, tt.arch)
			c.OnStep = func(step bootclient.Step) {
				if step.What == "script" {
					asked <- struct{}{}
				}
			}
			go func() { ended <- boot(t, c) }()
			if _, err := s.Ledger.Wait(within(t), "m1", pxe.KindScript); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				select {
				case <-asked:
				case out := <-ended:
					t.Fatalf("a held machine went on: %+v", out)
				case <-within(t).Done():
					t.Fatal("a held machine stopped asking")
				}
			}
			e, ok := s.Table.Lookup(pxetest.MAC(1))
			if !ok {
				t.Fatal("the machine is gone from the table")
			}
			base := "http://" + baseOf(t, s) + "/boot/" + e.Token().Reveal()
			for _, path := range []string{"kernel", "initrd/0", "image/boot.efi"} {
				resp, err := s.HTTP.Get(base + "/" + path)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusConflict {
					t.Errorf("%s of a held machine: %s", path, resp.Status)
				}
			}
			in.Held = false
			s.Set(in)
			out := <-ended
			if out.End != tt.want {
				t.Errorf("outcome %+v", out)
			}
			if n := strings.Count(kindNames(s.Ledger.Kinds("m1")), pxe.KindScript.String()); n != 1 {
				t.Errorf("the script was reported %d times", n)
			}
		})
	}
}

func kindNames(kinds []pxe.Kind) string {
	var out []string
	for _, k := range kinds {
		out = append(out, k.String())
	}
	return strings.Join(out, " ")
}
