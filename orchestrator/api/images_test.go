package api_test

import (
	"bytes"
	"encoding/json"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/orchestrator/api"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/images"
)

// diskImage is the least that passes for a disk.
func diskImage() string { return strings.Repeat("\x00", 510) + "\x55\xaa" + strings.Repeat("x", 1000) }

func diskUpload(name string) api.ImageUpload {
	return api.ImageUpload{Source: "disk.raw", Manifest: images.Manifest{Name: name, Type: "disk", Arch: "x86_64", Files: []images.Part{{Role: images.RoleDisk}}}}
}

// form writes an upload as a client does; cut leaves out its end.
func form(t *testing.T, in any, cut int, files ...string) (string, []byte) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	head, err := w.CreateFormField(api.ImagePart)
	check(t, err)
	check(t, json.NewEncoder(head).Encode(in))
	for _, f := range files {
		part, err := w.CreateFormFile(api.FilePart, "file")
		check(t, err)
		_, err = io.WriteString(part, f)
		check(t, err)
	}
	check(t, w.Close())
	return w.FormDataContentType(), b.Bytes()[:b.Len()-cut]
}

func (s *service) put(name, media string, body []byte) (int, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPut, s.url+"/api/v1/images/"+name, bytes.NewReader(body))
	check(s.t, err)
	req.Header.Set("Content-Type", media)
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("X-Rerack-Actor", "ada")
	resp, err := http.DefaultClient.Do(req)
	check(s.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	check(s.t, err)
	return resp.StatusCode, string(b)
}

// files counts what lies in the image store, whatever it is.
func (s *service) files() (n int) {
	s.t.Helper()
	check(s.t, filepath.WalkDir(s.images, func(_ string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n++
		}
		return err
	}))
	return n
}

func TestImageUploadIsWholeOrNothing(t *testing.T) {
	s := start(t)
	wrong := diskUpload("appliance")
	wrong.Manifest.Files[0].Digest = pxe.Digest("sha256:" + strings.Repeat("0", 64))
	for name, tt := range map[string]struct {
		in    any
		files []string
		cut   int
		code  int
		says  string
	}{
		"checksum":         {wrong, []string{diskImage()}, 0, 500, "expected sha256:0000"},
		"qcow2":            {diskUpload("appliance"), []string{"QFI\xfb" + diskImage()}, 0, 501, "it is qcow2"},
		"too large":        {diskUpload("appliance"), []string{diskImage() + strings.Repeat("x", 1<<20)}, 0, 422, "larger than"},
		"cut off":          {diskUpload("appliance"), []string{diskImage()}, 500, 422, "cut off"},
		"no file":          {diskUpload("appliance"), nil, 0, 422, "no part file"},
		"another name":     {diskUpload("other"), []string{diskImage()}, 0, 422, "names"},
		"traversal":        {diskUpload("../../x"), []string{diskImage()}, 0, 422, "names"},
		"unknown field":    {map[string]any{"path": "/etc/shadow"}, []string{diskImage()}, 0, 422, "unknown field"},
		"no manifest":      {"text", []string{diskImage()}, 0, 422, "part image"},
		"source too long":  {api.ImageUpload{Manifest: diskUpload("appliance").Manifest, Source: strings.Repeat("x", 4000)}, []string{diskImage()}, 0, 422, "source"},
		"nothing but junk": {nil, nil, 0, 422, "part image"},
	} {
		media, body := form(t, tt.in, tt.cut, tt.files...)
		if name == "nothing but junk" {
			body = []byte("junk")
		}
		if code, out := s.put("appliance", media, body); code != tt.code || !strings.Contains(out, tt.says) || !strings.Contains(out, `"detail"`) {
			t.Errorf("%s: %d %s", name, code, out)
		}
		if n := s.files(); n != 0 {
			t.Errorf("%s: %d files are left", name, n)
		}
	}
	if code, out := s.put("appliance", "application/json", []byte("{}")); code != 422 || !strings.Contains(out, "multipart/form-data") {
		t.Errorf("JSON: %d %s", code, out)
	}
	if resp, _ := s.do("PUT", "/api/v1/images/appliance", "Bearer wrong", ""); resp.StatusCode != 401 {
		t.Errorf("without the token: %d", resp.StatusCode)
	}
}

func TestImageLife(t *testing.T) {
	s := start(t)
	media, body := form(t, diskUpload("appliance"), 0, diskImage())
	code, out := s.put("appliance", media, body)
	var v api.ImageView
	if err := json.Unmarshal([]byte(out), &v); code != 200 || err != nil || v.By != "ada" || v.Size != int64(len(diskImage())) || len(v.UsedBy) != 0 {
		t.Fatalf("import: %d %s", code, out)
	}
	digest := string(v.Manifest.Files[0].Digest)
	apply := func(yaml string) {
		t.Helper()
		b, err := json.Marshal(api.TopologyRequest{Files: []api.File{{Name: "a.yaml", Data: yaml}}})
		check(t, err)
		if code, out := s.ask("POST", "/api/v1/topology/apply", string(b)); code != 200 {
			t.Fatalf("apply: %d %s", code, out)
		}
	}
	refused := func(path, says string) {
		t.Helper()
		if code, out := s.ask("DELETE", "/api/v1/images/appliance"+path, ""); code != 409 || !strings.Contains(out, says) {
			t.Errorf("%d %s, want %q", code, out, says)
		}
	}
	const site = "apiVersion: rerack/v1\nkind: Site\nmetadata: {name: hall}\n---\n"
	apply(site + "apiVersion: rerack/v1\nkind: Image\nmetadata: {name: fw}\nspec: {type: disk, arch: x86_64, file: \"" + digest + "\"}\n")
	refused("", "Image fw")
	refused("?oldRevisions=true", "Image fw")
	apply(site)
	refused("", "Image fw of revision 1")
	b, err := state.Encode(state.Boot{Name: "m1", Machine: "m1", Run: "r", Epoch: 1, Workflow: "w", Type: "disk", File: digest})
	check(t, err)
	check(t, s.store.Txn(t.Context(), store.Put(state.BootsAt+"m1", b)))
	refused("?oldRevisions=true", "boot of m1")
	if code, out := s.ask("GET", "/api/v1/images", ""); code != 200 || !strings.Contains(out, "boot of m1") {
		t.Errorf("list: %d %s", code, out)
	}
	check(t, s.store.Txn(t.Context(), store.Delete(state.BootsAt+"m1")))
	if code, out := s.ask("POST", "/api/v1/images/appliance/verify", ""); code != 200 || !strings.Contains(out, `"state":"ok"`) {
		t.Errorf("verify: %d %s", code, out)
	}
	if code, out := s.ask("DELETE", "/api/v1/images/appliance?oldRevisions=true", ""); code != 200 || !strings.Contains(out, digest) {
		t.Errorf("remove: %d %s", code, out)
	}
	if n := s.files(); n != 0 {
		t.Errorf("%d files are left", n)
	}
	if code, _ := s.ask("GET", "/api/v1/images/appliance", ""); code != 404 {
		t.Errorf("show after removal: %d", code)
	}
	if code, out := s.ask("GET", "/api/v1/image-garbage", ""); code != 200 || strings.TrimSpace(out) != "[]" {
		t.Errorf("garbage: %d %s", code, out)
	}
	if code, out := s.ask("GET", "/openapi.json", ""); code != 200 || !strings.Contains(out, "import-image") {
		t.Errorf("the upload is not in the API's document: %d", code)
	}
}

// TestImageUploadsAtOnce holds as many uploads open as there may be, and asks for one more.
func TestImageUploadsAtOnce(t *testing.T) {
	s := start(t)
	media, body := form(t, diskUpload("appliance"), 0, diskImage())
	var ends []*io.PipeWriter
	done := make(chan int, 4)
	for range 4 {
		r, w := io.Pipe()
		ends = append(ends, w)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.url+"/api/v1/images/appliance", r)
		check(t, err)
		req.Header.Set("Content-Type", media)
		req.Header.Set("Authorization", "Bearer "+token)
		go func() {
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				done <- 0
				return
			}
			_ = resp.Body.Close()
			done <- resp.StatusCode
		}()
		if _, err := w.Write(body[:len(body)-600]); err != nil {
			t.Fatal(err)
		}
	}
	// Each has its slot when it has begun to write its file.
	for deadline := time.Now().Add(20 * time.Second); s.files() < 4; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d uploads have begun", s.files())
		}
	}
	if code, out := s.put("appliance", media, body); code != 503 || !strings.Contains(out, "come in already") {
		t.Errorf("one more: %d %s", code, out)
	}
	for _, w := range ends {
		if _, err := w.Write(body[len(body)-600:]); err != nil {
			t.Error(err)
		}
		check(t, w.Close())
	}
	for range 4 {
		if code := <-done; code != 200 {
			t.Errorf("an upload ends with %d", code)
		}
	}
}
